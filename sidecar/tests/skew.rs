//! Versions that differ: this library with a sidecar of a later or an earlier minor version, and of another major one;
//! this sidecar with libraries of those. What a later version adds is passed over, what an earlier one lacks is done
//! without, and another major version is refused, so that either side can be upgraded first.

mod support;

use freeboard_budget::layout::{Header, Kind, MAJOR, MINOR, Slot, TABLES, Table};
use freeboard_budget::protocol::{MAGIC, STATUS_OK, STATUS_VERSION};
use rustix::fd::AsFd;
use rustix::fs::SealFlags;
use std::fs::File;
use std::mem::offset_of;
use support::hostile::contents;
use support::impostor::{BYTES, Writer, greeted, listener, memory, welcome};
use support::*;

/// A file of the region, taken apart.
#[derive(Clone)]
struct Region {
    header: Vec<u8>,
    /// Kind, bytes of a row, rows.
    tables: Vec<(u32, usize, Vec<Vec<u8>>)>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The header's table entries: kind, offset, stride and count.
fn tables(bytes: &[u8]) -> impl Iterator<Item = [usize; 4]> {
    let entries = (0..TABLES).map(|index| offset_of!(Header, tables) + index * size_of::<Table>());
    entries.map(|at| [0, 4, 8, 12].map(|field| word(bytes, at + field) as usize)).filter(|table| table[0] != 0)
}

impl Region {
    fn of(bytes: &[u8]) -> Region {
        let rows = |[kind, offset, stride, count]: [usize; 4]| {
            let row = |index| bytes[offset + index * stride..][..stride].to_vec();
            (kind as u32, stride, (0..count).map(row).collect())
        };
        Region { header: bytes[..size_of::<Header>()].to_vec(), tables: tables(bytes).map(rows).collect() }
    }

    /// A later minor version's: a longer header with a feature, longer rows, and a table of an unknown kind before all.
    fn later(mut self) -> Region {
        put(&mut self.header, offset_of!(Header, minor), &(MINOR + 7).to_ne_bytes());
        put(&mut self.header, offset_of!(Header, features), &u64::MAX.to_ne_bytes());
        self.header.resize(size_of::<Header>() + 128, 0xee);
        for (_, stride, _) in &mut self.tables {
            *stride += 64;
        }
        self.tables.insert(0, (99, 192, vec![vec![0xdd; 192]; 3]));
        self
    }

    /// An earlier one's, which knew no table of that kind.
    fn without(mut self, kind: Kind) -> Region {
        self.tables.retain(|table| table.0 != kind as u32);
        self
    }

    fn of_major(mut self, major: u16) -> Region {
        put(&mut self.header, offset_of!(Header, major), &major.to_ne_bytes());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        put(&mut bytes, offset_of!(Header, header_bytes), &(self.header.len() as u32).to_ne_bytes());
        bytes[offset_of!(Header, tables)..][..TABLES * size_of::<Table>()].fill(0);
        for (index, (kind, stride, rows)) in self.tables.iter().enumerate() {
            let entry = [*kind, bytes.len() as u32, *stride as u32, rows.len() as u32].map(u32::to_ne_bytes).concat();
            put(&mut bytes, offset_of!(Header, tables) + index * size_of::<Table>(), &entry);
            for row in rows {
                let start = bytes.len();
                bytes.extend(row);
                bytes.resize(start + stride, 0xcc);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let file_bytes = bytes.len() as u64;
        put(&mut bytes, offset_of!(Header, file_bytes), &file_bytes.to_ne_bytes());
        bytes
    }
}

/// What the processes that have a row in the counters say that they have written.
fn written(counters: &[u8]) -> u64 {
    let [_, offset, stride, count] = tables(counters).find(|table| table[0] == Kind::Slots as usize).unwrap();
    let at = |row: usize| offset + row * stride + offset_of!(Slot, written_bytes);
    (0..count).map(|row| u64::from_ne_bytes(counters[at(row)..][..8].try_into().unwrap())).sum()
}

#[test]
fn this_library_with_other_sidecars() {
    let sidecar = Sidecar::start(&[]);
    let (status, row, descriptors) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!(status, STATUS_OK);
    // read once: the sidecar goes on writing
    let contents_of = [0, 1].map(|index| contents(&descriptors[index]));
    let [budget, counters] = contents_of.each_ref().map(|bytes| Region::of(bytes));
    assert!(budget.bytes() == contents_of[0], "taken apart and put together");
    let cases: [(&str, Region, Region, bool); 7] = [
        ("the same", budget.clone(), counters.clone(), true),
        ("later", budget.clone().later(), counters.clone().later(), true),
        ("later budget alone", budget.clone().later(), counters.clone(), true),
        ("without devices", budget.clone().without(Kind::Devices), counters.clone(), true),
        ("without excludes", budget.clone().without(Kind::Excludes), counters.clone(), true),
        ("another major", budget.clone().of_major(MAJOR + 1), counters.clone(), false),
        ("another major of the counters", budget.clone(), counters.clone().of_major(MAJOR + 1), false),
    ];
    let writer = Writer::new();
    let path = writer.path("socket");
    let listener = listener(&path);
    for (what, budget, counters, is_taken) in cases {
        let sealed = SealFlags::SHRINK | SealFlags::GROW;
        let (budget, counters) = (memory(&budget.bytes(), sealed), memory(&counters.bytes(), sealed));
        writer.ends_as_ever(what, writer.start(&[("FREEBOARD_SOCKET", &path)]), || {
            if let Some(socket) = greeted(&listener) {
                send(&socket, &welcome(status, row), &[budget.as_fd(), counters.as_fd()]);
            }
        });
        let counted = written(&contents(&counters));
        assert_eq!(counted, if is_taken { BYTES as u64 } else { 0 }, "{what}");
    }
}

#[test]
fn this_sidecar_with_other_libraries() {
    let sidecar = Sidecar::start(&[]);
    let group = File::open(own_group()).unwrap();
    for (major, minor, want) in [(MAJOR, MINOR + 7, STATUS_OK), (MAJOR + 1, MINOR, STATUS_VERSION)] {
        let mut hello = hello_of(MAGIC, major);
        put(&mut hello, 10, &minor.to_ne_bytes());
        let socket = dial(&sidecar.socket()).unwrap();
        send(&socket, &hello, &[group.as_fd()]);
        assert_eq!(receive(&socket).unwrap().0, want, "{major}.{minor}");
    }
}
