//! copy HOW FROM TO: copies a file as Rust's standard library does it (`fs::copy`), or by its writers.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, how, from, to] = &arguments[..] else { panic!("copy HOW FROM TO") };
    match how.as_str() {
        "copy" => drop(fs::copy(from, to)?),
        "writes" => {
            let (mut from, mut to) = (BufReader::new(File::open(from)?), BufWriter::new(File::create(to)?));
            let mut block = [0; 1000];
            loop {
                let bytes = from.read(&mut block)?;
                if bytes == 0 {
                    break;
                }
                to.write_all(&block[..bytes])?;
            }
            to.flush()?;
        }
        _ => panic!("unknown way: {how}"),
    }
    Ok(())
}
