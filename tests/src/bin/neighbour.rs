//! `neighbour BYTES`: takes so much memory, and prints how long that took.

use freeboard_tests::neighbour;

fn main() {
    let bytes = std::env::args().nth(1).and_then(|bytes| bytes.parse().ok()).expect("usage: neighbour BYTES");
    println!("{}", neighbour::take(bytes));
}
