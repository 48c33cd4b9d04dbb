//! The library against a sidecar that means harm, or is out of its mind: whatever lies in its region and whatever it
//! answers, the program that the library was loaded into writes what it writes, ends, and hears nothing of it.
//!
//! Cases are made from a number, which is said where one fails. The library is the debug build: an overflow would
//! abort.

mod support;

use freeboard_budget::layout::{BUDGET_FILE, Header};
use freeboard_budget::protocol::STATUS_OK;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use std::fs::{self, File};
use support::hostile::{Numbers, cases, contents};
use support::impostor::{Writer, greeted, listener, memory, welcome};
use support::*;

#[test]
fn whatever_lies_in_the_regions_file() {
    let sidecar = Sidecar::start(&[]);
    assert_eq!(greet(&sidecar.socket(), &own_group()).unwrap().0, STATUS_OK);
    let tick = sidecar.tick();
    eventually("the group's numbers are in the file", || sidecar.tick() > tick + 2);
    let writer = Writer::new();
    let whole = fs::read(sidecar.dir.path().join(BUDGET_FILE)).unwrap();
    let region = writer.path("region");
    fs::create_dir(&region).unwrap();
    for case in 0..cases() {
        let mut numbers = Numbers::of_case(case);
        let mut bytes = whole.clone();
        numbers.damage(&mut bytes);
        let put = |bytes: &[u8]| fs::write(region.join(BUDGET_FILE), bytes).unwrap();
        put(&bytes);
        // torn and changing while it is read: the heartbeat too, or it would soon be taken for dead
        writer.ends_as_ever(case, writer.start(&[("FREEBOARD_REGION", &region)]), || {
            numbers.damage(&mut bytes);
            bytes[..size_of::<Header>()].copy_from_slice(&whole[..size_of::<Header>()]);
            let tick = numbers.next().to_ne_bytes();
            bytes[std::mem::offset_of!(Header, tick)..][..8].copy_from_slice(&tick);
            put(&bytes[..if numbers.below(8) == 0 { numbers.below(bytes.len()) } else { bytes.len() }]);
        });
    }
}

#[test]
fn whatever_the_socket_answers() {
    let sidecar = Sidecar::start(&[]);
    let (status, row, descriptors) = greet(&sidecar.socket(), &own_group()).unwrap();
    assert_eq!(status, STATUS_OK);
    let whole: Vec<Vec<u8>> = descriptors.iter().map(contents).collect();
    let shrinkable = SealFlags::empty();
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let wrong: [OwnedFd; 7] = [
        memory(&whole[0], shrinkable),
        memory(&[], sealed),
        memory(&whole[0][..100], sealed),
        memory(&vec![0xff; 8 << 20], sealed),
        File::open("/dev/zero").unwrap().into(),
        File::open("/proc/self/status").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
    ];
    let writer = Writer::new();
    let path = writer.path("socket");
    let listener = listener(&path);
    for case in 0..cases() {
        let mut numbers = Numbers::of_case(case);
        let damaged: Vec<OwnedFd> = whole
            .iter()
            .map(|bytes| {
                let mut bytes = bytes.clone();
                numbers.damage(&mut bytes);
                memory(&bytes, sealed)
            })
            .collect();
        let mut answered: Vec<OwnedFd> = Vec::new();
        writer.ends_as_ever(case, writer.start(&[("FREEBOARD_SOCKET", &path)]), || {
            let Some(socket) = greeted(&listener) else { return };
            let bytes = match numbers.below(8) {
                0 => return, // closed without a word
                1 => vec![0xff; 4096],
                2 => numbers.next().to_ne_bytes().repeat(2),
                3 => welcome(status, numbers.next() as u32),
                _ => welcome(status, row),
            };
            let any = |numbers: &mut Numbers| match numbers.below(3) {
                0 => wrong[numbers.below(wrong.len())].as_fd(),
                1 => descriptors[numbers.below(2)].as_fd(),
                _ => damaged[numbers.below(2)].as_fd(),
            };
            let given: Vec<BorrowedFd> = match numbers.below(3) {
                0 => (0..numbers.below(6)).map(|_| any(&mut numbers)).collect(),
                1 => vec![damaged[0].as_fd(), descriptors[1].as_fd()],
                _ => vec![damaged[0].as_fd(), damaged[1].as_fd()],
            };
            send(&socket, &bytes, &given);
            // some are left open, and nothing more is said
            if numbers.below(2) == 0 {
                answered.push(socket);
            }
        });
    }
}
