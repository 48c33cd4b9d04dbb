//! The steps that applications and the sidecar take on shared memory, under every interleaving of their threads and
//! every stale value that the memory model allows. What runs here is the code that runs in both:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p freeboard-budget --test loom`.
//!
//! Loom 0.7 remembers of each word its last access alone: a thread's load just before its own swap hides from it what
//! other threads did before. So a test asserts that the cases it is about came up.
#![cfg(loom)]

use freeboard_budget::Mode;
use freeboard_budget::layout::{Policy, Rule, Slot};
use freeboard_budget::slots::{Owned, Phase, Report};
use loom::sync::Arc;
use loom::thread;
use std::convert::Infallible;
use std::sync::Arc as Counted;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

const A: u64 = 11;
const B: u64 = 22;

/// Numbers of which one can be told from the other, and from half of each.
fn report(bytes: u64) -> Report {
    Report { last_tick: 1, written_bytes: bytes, confirmed_bytes: bytes, ..Report::default() }
}

fn bytes(report: &Report) -> [u64; 2] {
    [report.written_bytes, report.confirmed_bytes]
}

fn live(slot: &Slot, nonce: u64) -> bool {
    slot.owned() == Some(Owned { nonce, phase: Phase::Live })
}

#[test]
fn of_two_claimers_one_owns_the_row() {
    loom::model(|| {
        let slot = Arc::new(Slot::default());
        let claim = |nonce| {
            let slot = slot.clone();
            thread::spawn(move || {
                let is_claimed = slot.claim(nonce, 0, 1);
                assert_eq!(slot.publish(nonce, &report(nonce)), is_claimed);
                is_claimed
            })
        };
        let claimed = [claim(A), claim(B)].map(|claimer| claimer.join().unwrap());
        let [a, b] = claimed;
        assert!(a != b, "one of two: {claimed:?}");
        assert_eq!(bytes(&slot.report()), [if a { A } else { B }; 2]);
    });
}

/// A row whose last owner has ended, while the sidecar collects it and two processes want it.
#[test]
fn a_collected_row_has_one_next_owner() {
    loom::model(|| {
        let slot = Arc::new(Slot::default());
        assert!(slot.claim(7, 0, 1) && slot.publish(7, &report(7)) && slot.end(7));
        let claim = |nonce| {
            let slot = slot.clone();
            thread::spawn(move || slot.claim(nonce, 0, 1) && slot.publish(nonce, &report(nonce)))
        };
        let claimers = [claim(A), claim(B)];
        assert_eq!(
            slot.collect().map(|said| bytes(&said)),
            Some([7; 2]),
            "the next owner's numbers are not the last's"
        );
        let [a, b] = claimers.map(|claimer| claimer.join().unwrap());
        assert!(!(a && b), "two owners");
        assert_eq!(slot.collect(), None, "added up twice");
        match slot.owned() {
            None => assert!(!a && !b),
            Some(owned) => assert_eq!(owned, Owned { nonce: if a { A } else { B }, phase: Phase::Live }),
        }
    });
}

/// Two processes one after the other or at once on one row, each from claim to end, while the sidecar collects.
#[test]
fn what_an_ended_process_published_is_added_up_once_and_in_full() {
    let both = Counted::new(AtomicUsize::new(0));
    let runs = both.clone();
    loom::model(move || {
        let slot = Arc::new(Slot::default());
        let live = |nonce, amount| {
            let slot = slot.clone();
            thread::spawn(move || {
                if !slot.claim(nonce, 0, 1) {
                    return 0;
                }
                assert!(slot.publish(nonce, &report(1)) && slot.publish(nonce, &report(amount)) && slot.end(nonce));
                amount
            })
        };
        let processes = [live(A, 100), live(B, 1000)];
        let mut collected = [0, 0];
        let mut collect = || {
            if let Some(said) = slot.collect() {
                assert!(bytes(&said) == [100; 2] || bytes(&said) == [1000; 2], "half of it: {said:?}");
                collected[0] += said.written_bytes;
                collected[1] += said.confirmed_bytes;
            }
        };
        collect();
        collect();
        let said: u64 = processes.map(|process| process.join().unwrap()).iter().sum();
        collect();
        collect();
        assert!(said >= 100, "nobody got the row");
        assert_eq!(collected, [said; 2]);
        runs.fetch_add(usize::from(said == 1100), Relaxed);
    });
    assert!(both.load(Relaxed) > 0, "the row never had two owners one after the other");
}

/// A process that was silent for long writes and ends just while its row is taken back, collected and claimed anew.
#[test]
fn who_lost_its_row_notices_and_does_not_end_the_next_owner() {
    let cases = Counted::new([const { AtomicUsize::new(0) }; 2]);
    let runs = cases.clone();
    loom::model(move || {
        let slot = Arc::new(Slot::default());
        assert!(slot.claim(A, 0, 1));
        let idle = {
            let slot = slot.clone();
            thread::spawn(move || {
                let was_own = slot.publish(A, &report(5));
                let is_ended = slot.end(A);
                assert!(was_own || !is_ended, "a row that was lost does not come back");
                (was_own, is_ended)
            })
        };
        // the sidecar and the next owner in one thread: they may come as close after each other as they like
        let is_taken = slot.end(A);
        let collected = slot.collect();
        let is_claimed = slot.claim(B, 0, 1);
        if is_claimed {
            assert!(slot.publish(B, &report(70)), "the row was lost to a former owner");
        }
        let (was_own, is_ended) = idle.join().unwrap();
        if is_claimed {
            runs[usize::from(is_ended)].fetch_add(1, Relaxed);
        }

        assert!(is_taken != is_ended, "ended by its owner or by the sidecar");
        // late stores may mix older numbers of the same owner into the row, and nothing else
        if let Some(said) = &collected {
            assert!(bytes(said).iter().all(|count| [0, 5].contains(count)), "{said:?}");
            assert!(!was_own || bytes(said) == [5; 2], "it will not say them again: {said:?}");
        }
        assert!(collected.is_some() || !is_claimed, "claimed before it was free");
        assert!(!slot.publish(A, &report(9)) || (collected.is_none() && !is_claimed));
        if is_claimed {
            assert!(live(&slot, B));
            // what the former owner was still writing is gone with the next word of the row's own
            assert!(slot.publish(B, &report(71)) && slot.end(B));
            assert_eq!(slot.collect().map(|said| bytes(&said)), Some([71; 2]));
        } else if is_ended && collected.is_none() {
            assert_eq!(slot.collect().map(|said| bytes(&said)), Some([5; 2]), "its last word");
        }
    });
    let [lost, ended] = [&cases[0], &cases[1]].map(|runs| runs.load(Relaxed));
    assert!(lost > 0 && ended > 0, "taken back {lost} times, ended in order {ended} times before the next owner came");
}

/// The policy changes so often that the bank being read is filled again.
#[test]
fn a_reader_never_mixes_two_policies() {
    loom::model(|| {
        let shared = Arc::new((Policy::default(), [Rule::default(), Rule::default()]));
        let sidecar = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (policy, banks) = &*shared;
                for change in 1..=2 {
                    let changed: Result<(), Infallible> = policy.change(Mode::Auto, |bank| {
                        banks[bank.first_row(2)].mode.store(change, Relaxed);
                        bank.rules(policy).store(change, Relaxed);
                        Ok(())
                    });
                    changed.unwrap();
                }
            })
        };
        let (policy, banks) = &*shared;
        let read =
            || policy.read(|bank| (bank.rules(policy).load(Relaxed), banks[bank.first_row(2)].mode.load(Relaxed)));
        let (rows, mode) = read();
        assert_eq!(rows, mode, "the number of one policy's rules, and rules of another");
        sidecar.join().unwrap();
        assert_eq!(read(), (2, 2));
    });
}
