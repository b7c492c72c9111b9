//! Prints an `ezio.conf` with every key, for docs/config.md (`make docs`).

fn main() {
    print!("{}", order::example());
}
