//! The crate as its users see it: what is packed reads back, and what lies is found out.

use std::sync::Mutex;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const LEN: usize = FRAME_LEN as usize;

/// Content of every kind: zeros, text, and what does not shrink.
fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len + 4096);
    while bytes.len() < len {
        let run = usize::try_from(next() % 60_000).expect("small");
        match next() % 3 {
            0 => bytes.resize(bytes.len() + run, 0),
            1 => (0..run).for_each(|at| bytes.push(b"the quick brown fox "[at % 20])),
            _ => (0..run).for_each(|_| bytes.push(next().to_le_bytes()[3])),
        }
    }
    bytes.truncate(len);
    bytes
}

/// A file of frames.
fn file(raw: &[u8], frame_len: usize, level: i32) -> Vec<u8> {
    let mut packer = Packer::new(level).expect("memory");
    let (mut out, mut table) = (Vec::new(), TableWriter::default());
    for frame in raw.chunks(frame_len) {
        let packed = packer.pack(frame, &mut out).expect("memory");
        table.push(packed, u32::try_from(frame.len()).expect("short")).expect("few");
    }
    out.extend_from_slice(&table.finish());
    out
}

/// A file of the given frames, whatever the table says they hold.
fn file_of(frames: &[(&[u8], u32)]) -> Vec<u8> {
    let (mut out, mut table) = (Vec::new(), TableWriter::default());
    for (packed, raw_len) in frames {
        out.extend_from_slice(packed);
        table.push(u32::try_from(packed.len()).expect("short"), *raw_len).expect("few");
    }
    out.extend_from_slice(&table.finish());
    out
}

fn packed(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Packer::new(3).expect("memory").pack(raw, &mut out).expect("memory");
    out
}

fn open(file: Vec<u8>, raw_len: usize) -> Result<Reader<Vec<u8>>, TableError> {
    let len = file.len() as u64;
    Reader::open(file, len, raw_len as u64)
}

fn refusal(file: Vec<u8>, raw_len: usize) -> String {
    open(file, raw_len).expect_err("refused").to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_is_packed_reads_back_from_any_byte_on(
        len in 1usize..700_000, seed: u64, shift in 14u32..=17, level in -3i32..8, reads: [(Index, Index); 8],
    ) {
        let raw = content(len, seed);
        let file = file(&raw, 1 << shift, level);
        prop_assert!(zstd::decode_all(&file[..]).expect("any zstd reads it") == raw);
        let reader = open(file, len).expect("own file");
        prop_assert_eq!(reader.table().frame_count(), len.div_ceil(1 << shift));
        for (start, count) in reads {
            let start = start.index(len);
            let mut buf = vec![0; count.index(len - start + 1)];
            reader.read_exact_at(&mut buf, start as u64).expect("inside");
            prop_assert!(buf == raw[start..start + buf.len()]);
        }
        let mut past = [0; 2];
        let error = reader.read_exact_at(&mut past, len as u64 - 1).expect_err("past the end");
        prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_or_content_of_the_right_length(
        seed: u64, hits: Vec<(Index, u8)>, at_the_end: [u8; 24], is_end: bool, cut: Index, is_cut: bool,
    ) {
        let raw = content(150_000, seed);
        let mut file = file(&raw, 32 << 10, 1);
        for (at, byte) in hits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if is_end {
            let start = file.len() - 4 - at_the_end.len();
            file[start..start + at_the_end.len()].copy_from_slice(&at_the_end);
        }
        if is_cut {
            file.truncate(cut.index(file.len() + 1));
        }
        match open(file, raw.len()) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(reader) => for at in (0..raw.len()).step_by(16 << 10) {
                let mut buf = vec![0; (raw.len() - at).min(16 << 10)];
                if let Err(error) = reader.read_exact_at(&mut buf, at as u64) {
                    prop_assert!(error.to_string().contains("frame "), "{error}");
                }
            },
        }
    }

    #[test]
    fn a_table_of_anything_is_refused_or_adds_up(
        entries in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..6), sane: bool, raw_len in 0u64..1_000_000,
    ) {
        let mut table = TableWriter::default();
        for (packed, raw) in entries {
            let (packed, raw) = if sane { (packed % 200, 16 << 10) } else { (packed, raw) };
            table.push(packed, raw).expect("few");
        }
        let mut file = vec![0; 300];
        file.extend_from_slice(&table.finish());
        if let Ok(table) = Table::read(&file, file.len() as u64, raw_len) {
            prop_assert_eq!(table.raw_len(), raw_len);
        }
    }
}

#[test]
fn a_table_that_lies_is_refused_in_words() {
    let raw = content(3 * LEN, 7);
    let good = file(&raw, LEN, 3);
    assert!(has_table(&good, good.len() as u64) && !has_table(&raw, raw.len() as u64));
    assert!(refusal(raw.clone(), raw.len()).contains("does not end with a table"));
    assert!(refusal(Vec::new(), raw.len()).contains("does not end with a table"));
    assert!(refusal(good[good.len() - 4..].to_vec(), raw.len()).contains("does not end"), "nothing but its last mark");
    assert!(refusal(good.clone(), raw.len() - 1).contains("hold 393216 bytes instead of 393215"));
    let changed = |from_end: usize, bytes: &[u8]| {
        let mut file = good.clone();
        let at = file.len() - from_end;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(file, raw.len())
    };
    assert!(changed(5, &[0x04]).contains("flags 0x04"));
    assert!(changed(9, &u32::MAX.to_le_bytes()).contains("too many for a file of"));
    assert!(changed(9, &4u32.to_le_bytes()).contains("where 4 frames would put it"));
    assert!(changed(5, &[0x80]).contains("where 3 frames would put it"), "longer entries");
    assert!(changed(9 + 8, &u32::MAX.to_le_bytes()).contains("frame 2 would take 4294967295 bytes"));
    assert!(changed(9 + 8, &0u32.to_le_bytes()).contains("frame 2 would take 0 bytes"));
    assert!(changed(9 + 4, &u32::MAX.to_le_bytes()).contains("frame 2 would hold 4294967295 bytes"));
    assert!(changed(9 + 4, &(FRAME_LEN - 1).to_le_bytes()).contains("hold 393215 bytes instead of 393216"));
    assert!(changed(9 + 12, &(FRAME_LEN - 1).to_le_bytes()).contains("frame 2 does not start at a multiple of 131072"));
    let mut file = good.clone();
    file.splice(0..0, [0]);
    assert!(refusal(file, raw.len()).contains("its frames end at byte"), "a byte that is in no frame");
    let odd = file_of(&[(&packed(&raw[..48 << 10]), 48 << 10), (&packed(&raw[..1]), 1)]);
    assert!(refusal(odd, (48 << 10) + 1).contains("not a power of two"));
    assert!(refusal(file_of(&[]), 1).contains("no frames"));
}

/// A file that is said to be long and is zeros but for a few places.
struct Endless {
    places: Vec<(u64, Vec<u8>)>,
    read: Mutex<u64>,
}

impl ReadAt for Endless {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        *self.read.lock().expect("alone") += buf.len() as u64;
        buf.fill(0);
        for (start, bytes) in &self.places {
            for (place, byte) in (*start..).zip(bytes) {
                let inside = place.checked_sub(at).and_then(|at| usize::try_from(at).ok());
                if let Some(inside) = inside.and_then(|at| buf.get_mut(at)) {
                    *inside = *byte;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn what_a_table_wants_is_bounded_by_what_is_expected() {
    let frames: u32 = 1 << 27;
    let body = frames * 8 + 9;
    let len = 1 << 40;
    let foot = [&frames.to_le_bytes()[..], &[0], &0x8f92_eab1u32.to_le_bytes()].concat();
    let head = [0x184d_2a5eu32.to_le_bytes(), body.to_le_bytes()].concat();
    let mut source = Endless { places: vec![(len - 9, foot)], read: Mutex::new(0) };
    let error = Table::read(&source, len, 1 << 30).expect_err("no head").to_string();
    assert!(error.contains("does not start at byte"), "{error}");
    source.places.push((len - u64::from(body) - 8, head));
    let error = Table::read(&source, len, 1 << 30).expect_err("too many").to_string();
    assert!(error.contains("134217728 frames for 1073741824 bytes"), "{error}");
    assert!(*source.read.lock().expect("alone") < 100, "nothing of the table was read");
}

#[test]
fn a_frame_that_holds_more_or_less_than_it_should_is_damaged() {
    let raw = vec![7; 4 * LEN];
    for (frame, why) in [(&raw[..2 * LEN], ""), (&raw[..LEN - 1], "it holds 131071 bytes instead of 131072")] {
        let file = file_of(&[
            (&packed(&raw[..LEN]), FRAME_LEN),
            (&packed(frame), FRAME_LEN),
            (&packed(&raw[..LEN]), FRAME_LEN),
        ]);
        let reader = open(file, 3 * LEN).expect("the table is right");
        for len in [LEN, 16 << 10] {
            let mut buf = vec![0; len];
            reader.read_exact_at(&mut buf, 0).expect("the first is good");
            let error = reader.read_exact_at(&mut buf, FRAME_LEN.into()).expect_err("damaged");
            let said = error.to_string();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(said.contains("frame 1 (bytes ") && said.contains(" is damaged: ") && said.contains(why), "{said}");
            reader.read_exact_at(&mut buf, (2 * FRAME_LEN).into()).expect("the last is good");
            assert!(buf.iter().all(|&byte| byte == 7));
        }
    }
}

#[test]
fn the_blocks_of_a_frame_cost_one_unpacking_and_of_a_plain_one_none() {
    let mut raw = vec![7; 2 * LEN];
    raw.extend_from_slice(&content(40 * LEN, 99)[..]);
    let noise: Vec<u8> = (0..LEN as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let mut state = 1u64;
    raw.extend(noise.iter().map(|byte| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        byte ^ (state >> 33) as u8
    }));
    let reader = open(file(&raw, LEN, 3), raw.len()).expect("own file");
    let read = |start: usize, len: usize| {
        let mut buf = vec![0; len];
        reader.read_exact_at(&mut buf, start as u64).expect("inside");
        assert!(buf == raw[start..start + len], "{len} bytes at {start}");
    };
    (0..LEN).step_by(16 << 10).for_each(|at| read(at, 16 << 10));
    assert_eq!(reader.unpacked(), 1);
    // Across two frames: the second is new.
    read(LEN - 100, 200);
    assert_eq!(reader.unpacked(), 2);
    let plain = raw.len() - LEN;
    (plain..raw.len()).step_by(16 << 10).for_each(|at| read(at, 16 << 10));
    assert_eq!(reader.unpacked(), 2, "it was kept as it is");
    (0..42).for_each(|frame| read(frame * LEN + 5, 10));
    let before = reader.unpacked();
    read(5, 10);
    assert!(reader.unpacked() > before, "the first one had to make room");
}

#[test]
fn frames_are_never_longer_than_pieces() {
    for (piece_len, frame_len) in
        [(16 << 10, 16 << 10), (64 << 10, 64 << 10), (256 << 10, FRAME_LEN), (64 << 20, FRAME_LEN)]
    {
        assert_eq!(frame_len_for(piece_len), frame_len);
        assert!(piece_len.is_multiple_of(frame_len_for(piece_len)));
    }
}

#[test]
fn files_of_other_tools_with_checksums_are_read() {
    let raw = content(100_000, 5);
    let frames: Vec<Vec<u8>> = raw.chunks(64 << 10).map(packed).collect();
    let mut file = frames.concat();
    let body = 2 * 12 + 9u32;
    file.extend_from_slice(&[0x184d_2a5eu32.to_le_bytes(), body.to_le_bytes()].concat());
    for (frame, raw) in frames.iter().zip(raw.chunks(64 << 10)) {
        let numbers =
            [frame.len(), raw.len(), 0x1234].map(|number| u32::try_from(number).expect("small").to_le_bytes());
        file.extend_from_slice(&numbers.concat());
    }
    file.extend_from_slice(&[&2u32.to_le_bytes()[..], &[0x80], &0x8f92_eab1u32.to_le_bytes()].concat());
    let reader = open(file, raw.len()).expect("the format allows it");
    let mut buf = vec![0; raw.len()];
    reader.read_exact_at(&mut buf, 0).expect("good");
    assert!(buf == raw);
}

#[test]
fn a_file_of_nothing_is_no_content() {
    let bytes = file(&[], LEN, 1);
    let len = u64::try_from(bytes.len()).expect("short");
    let error = Reader::open(bytes, len, 0).expect_err("frames of no length cannot be read").to_string();
    assert!(error.contains("frame"), "{error}");
}
