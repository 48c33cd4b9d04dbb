//! Which programs are to be left alone: those that have the library, which paces them better, and those that the
//! workload file excludes.

use freeboard_budget::glob;
use rustix::fs::stat;
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;

/// Threads to remember; beyond that all is forgotten and found out again.
const MOST: usize = 1024;

/// What is known of the threads that were met.
#[derive(Debug)]
pub struct Programs {
    /// Name of the library's file.
    library: &'static str,
    exclude: Vec<String>,
    /// By thread: its program's (st_dev, st_ino), and whether it is left alone.
    known: HashMap<u32, ((u64, u64), bool)>,
}

impl Programs {
    /// `exclude`: the workload file's patterns.
    pub fn new(library: &'static str, exclude: Vec<String>) -> Programs {
        Programs { library, exclude, known: HashMap::new() }
    }

    /// Whether the program that a thread runs is to be left alone.
    pub fn is_left_alone(&mut self, thread: u32) -> bool {
        let place = format!("/proc/{thread}/exe");
        let Ok(stat) = stat(&place) else { return false };
        let program = (stat.st_dev, stat.st_ino);
        if let Some(&(known, left_alone)) = self.known.get(&thread)
            && known == program
        {
            return left_alone;
        }
        let path = fs::read_link(&place).unwrap_or_default();
        let excluded = |pattern: &String| glob::matches(pattern.as_bytes(), path.as_os_str().as_bytes());
        let left_alone = self.exclude.iter().any(excluded) || self.has_library(thread);
        if self.known.len() == MOST {
            self.known.clear();
        }
        self.known.insert(thread, (program, left_alone));
        left_alone
    }

    fn has_library(&self, thread: u32) -> bool {
        let maps = fs::read(format!("/proc/{thread}/maps")).unwrap_or_default();
        maps.split(|&byte| byte == b'\n').any(|line| line.ends_with(self.library.as_bytes()))
    }
}
