//! Which copies by the kernel (copy_file_range, sendfile) may be refused. A program repeats the call until all is
//! copied, and many forget what was copied already when a later one is refused: Go and Rust's standard library copied
//! twice, coreutils gives up. So a refusal must be the first answer, and nobody says which call is a program's first.
//! One that begins at the source's first byte is; of all others, none is refused after one between the same two files
//! was let go.

use super::call::Source;
use super::file::{self, Identity};
use std::collections::HashMap;

/// Copies to remember before it is looked which of them are over.
const MANY: usize = 512;

/// Copies that were let go and may not be over.
#[derive(Debug)]
pub struct Copies {
    /// By source and target: the process, and its descriptor of the target.
    gone: HashMap<(Identity, Identity), (u32, i32)>,
    /// How many there may be until it is looked again.
    most: usize,
}

impl Copies {
    /// None yet.
    pub fn new() -> Copies {
        Copies { gone: HashMap::new(), most: MANY }
    }

    /// Whether nothing that belongs to this copy can have been let go.
    pub fn is_first(&self, source: &Source, target: Identity) -> bool {
        source.at == Some(0) || !self.gone.contains_key(&(source.file, target))
    }

    /// One is let go, to this descriptor.
    pub fn let_go(&mut self, source: &Source, target: Identity, thread: u32, fd: i32) {
        let files = (source.file, target);
        if self.gone.contains_key(&files) {
            return;
        }
        if self.gone.len() >= self.most {
            self.gone.retain(|&(_, target), &mut (process, fd)| Identity::find(process, fd) == Ok(target));
            self.most = MANY.max(2 * self.gone.len());
        }
        // another thread of it may make the next call, when this one has ended
        self.gone.insert(files, (file::process_of(thread).unwrap_or(thread), fd));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn no_copy_is_refused_after_one_of_its_calls_was_let_go() {
        let (me, target) = (std::process::id(), tempfile::tempfile().unwrap());
        let to = Identity::find(me, target.as_raw_fd()).unwrap();
        let source = |ino, at| Source { file: Identity { dev: 1, ino }, at, left_bytes: 1 };
        let mut copies = Copies::new();
        assert!(copies.is_first(&source(0, Some(7)), to));
        // a thread that has ended says nothing of its process
        let process = std::thread::spawn(|| file::process_of(file::own_thread()));
        assert_eq!(process.join().unwrap(), Some(me));
        for ino in 0..2 * MANY as u64 {
            copies.let_go(&source(ino, Some(0)), to, me, target.as_raw_fd());
        }
        for ino in 0..2 * MANY as u64 {
            assert!(!copies.is_first(&source(ino, Some(7)), to), "the {ino}th is forgotten");
            assert!(!copies.is_first(&source(ino, None), to));
            assert!(copies.is_first(&source(ino, Some(0)), to), "at its first byte nothing was copied");
        }
        assert!(copies.is_first(&source(0, Some(7)), Identity { dev: 1, ino: 0 }));

        let fd = target.as_raw_fd();
        drop(target);
        for ino in 0..4 * MANY as u64 {
            copies.let_go(&source(ino, Some(0)), to, me, fd);
        }
        assert!(copies.gone.len() <= 2 * MANY + 1, "what is closed is kept: {}", copies.gone.len());
    }
}
