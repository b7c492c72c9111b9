//! What the virtual machine does with a mounted file system: fill it, and say what is in it. For busybox's shell.

use testvm::LVM;

/// What every script starts with. Files are made once in memory, so that copying them is all that a volume costs.
pub fn prelude() -> String {
    format!("{FUNCTIONS}{LVM}")
}

const FUNCTIONS: &str = r#"
piece() { dd if=/tmp/pool bs=1k skip=$1 count=$2 2>/dev/null || failed writing; }

make_tree() {
    head -c 6291456 /dev/urandom >/tmp/pool
    mkdir -p /tmp/tree/small /tmp/tree/large /tmp/tree/deep/er/still
    for i in $(seq 1 80); do piece $((i * 7)) $((i % 23)) >/tmp/tree/small/file$i; done
    for i in $(seq 1 60); do : >"/tmp/tree/small/an empty file, number $i"; done
    for i in 1 2 3 4; do piece $((i * 900)) $((i * 450)) >/tmp/tree/large/file$i; done
}

# Small, large, sparse, interleaved and deleted files, then new ones in the holes; $1 says which links it knows.
fill() {
    cd /mnt
    cp -r /tmp/tree/. . || failed no room for the tree
    for i in $(seq 1 20); do
        piece $((i * 11)) 12 >>deep/one
        piece $((i * 13)) 20 >>deep/er/two
        echo $i >>deep/er/still/log
    done
    cp /tmp/pool gone || failed no room
    sync
    i=2
    list=
    while [ $i -le 80 ]; do list="$list small/file$i"; i=$((i + 2)); done
    rm $list gone large/file3 deep/one
    sync
    for i in $(seq 1 15); do piece $((i * 100)) $((i * 3 + 40)) >deep/new$i; done
    cp /tmp/pool large/pool || failed no room
    dd if=/tmp/pool of=sparse bs=1k count=9 seek=4000 conv=notrunc 2>/dev/null || failed no room
    rm small/file?5 deep/new*7 large/file4 || failed rm
    case $1 in *hard*) ln large/file1 hard || failed ln ;; esac
    case $1 in *symbolic*) ln -s small/file1 link || failed ln -s ;; esac
    cd /
    sync
}

# A checksum of each file; one of names, sizes, kinds, links and targets of all of them; what is in use.
sums() {
    cd /mnt
    find . -type f -exec sha1sum {} + | sed 's/^/SUM /'
    find . -exec stat -c '%N %s %f %h' {} + | sort | sha1sum | sed 's/^/TREE /'
    echo DF $(df -k /mnt | tail -1)
    cd /
}

# volume TYPE OPTIONS DEVICE
volume() {
    case $1 in
    ntfs-3g) ntfs-3g -o $2 $3 /mnt ;;
    *) mount -t $1 -o $2 $3 /mnt ;;
    esac || failed mount of $1
}
leave() { umount /mnt || failed umount; }
open_luks() { echo -n secret | cryptsetup open --key-file - $1 luks >/tmp/said 2>&1 || { cat /tmp/said; failed luks; }; }
close_luks() { cryptsetup close luks || failed close; }
"#;
