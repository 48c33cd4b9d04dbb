//! Whose calls are to be left alone: those of programs that the workload file excludes, and those that the library
//! sees, which paces them better. It sees what is called in libc. A call that a program makes in its own code passes it
//! by: Go makes all of them so, also where it has the library because cgo has linked it with libc.

use freeboard_budget::glob;
use rustix::fs::stat;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

/// Threads to remember; beyond that all is forgotten and found out again.
const MOST: usize = 1024;

/// What is known of the threads that were met.
#[derive(Debug)]
pub struct Programs {
    /// Name of the library's file.
    library: &'static str,
    exclude: Vec<String>,
    /// By thread: its program's (st_dev, st_ino), and what is left alone of it.
    known: HashMap<u32, ((u64, u64), Alone)>,
}

/// What is left alone of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Alone {
    All,
    Nothing,
    /// What is not called in the program's own code: where code lies, and whether it is that.
    AllButOwn(Vec<(Range<u64>, bool)>),
}

impl Alone {
    /// Of a call made at this address; `None`: there was no code yet when the mappings were read.
    fn holds(&self, at: u64) -> Option<bool> {
        match self {
            Alone::All => Some(true),
            Alone::Nothing => Some(false),
            Alone::AllButOwn(code) => code.iter().find(|(code, _)| code.contains(&at)).map(|(_, is_own)| !is_own),
        }
    }
}

impl Programs {
    /// `exclude`: the workload file's patterns.
    pub fn new(library: &'static str, exclude: Vec<String>) -> Programs {
        Programs { library, exclude, known: HashMap::new() }
    }

    /// Whether a call is to be left alone that a thread has made at this address.
    pub fn is_left_alone(&mut self, thread: u32, at: u64) -> bool {
        let place = format!("/proc/{thread}/exe");
        let Ok(stat) = stat(&place) else { return false };
        let program = (stat.st_dev, stat.st_ino);
        // one that executes its own program anew has its code elsewhere
        if let Some((known, alone)) = self.known.get(&thread)
            && *known == program
            && let Some(holds) = alone.holds(at)
        {
            return holds;
        }
        let path = fs::read_link(&place).unwrap_or_default();
        let path = path.as_os_str().as_bytes();
        let alone = if self.exclude.iter().any(|pattern| glob::matches(pattern.as_bytes(), path)) {
            Alone::All
        } else {
            left_alone(&fs::read(format!("/proc/{thread}/maps")).unwrap_or_default(), self.library, path)
        };
        let holds = alone.holds(at).unwrap_or(true);
        if self.known.len() == MOST {
            self.known.clear();
        }
        self.known.insert(thread, (program, alone));
        holds
    }
}

/// What is left alone of the program at `path`, by its mappings (proc_pid_maps(5)).
fn left_alone(maps: &[u8], library: &str, path: &[u8]) -> Alone {
    let lines = || maps.split(|&byte| byte == b'\n');
    // a newer one is put into its place by rename
    let file = |line: &'_ [u8]| line.strip_suffix(b" (deleted)").unwrap_or(line).ends_with(library.as_bytes());
    if !lines().any(file) {
        return Alone::Nothing;
    }
    let code = |line: &[u8]| {
        let text = str::from_utf8(line.get(..line.iter().position(|&byte| byte == b' ')? + 5)?).ok()?;
        let (addresses, access) = text.split_once(' ')?;
        let (start, end) = addresses.split_once('-')?;
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16));
        let is_own = line.strip_suffix(path).is_some_and(|before| before.ends_with(b" "));
        (access.as_bytes().get(2) == Some(&b'x')).then_some((start.ok()?..end.ok()?, is_own))
    };
    Alone::AllButOwn(lines().filter_map(code).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
00400000-00402000 r--p 00000000 fe:00 1835045                            /opt/a tool
00402000-00467000 r-xp 00002000 fe:00 1835045                            /opt/a tool
00467000-004dd000 r--p 00067000 fe:00 1835045                            /opt/a tool
00600000-00601000 rwxp 000dd000 fe:00 1835045                            /opt/a tool
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
7f0000026000-7f000017b000 r-xp 00026000 fe:00 1311021                    /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000200000-7f0000210000 r-xp 00001000 fe:00 1311022                    /srv/libfreeboard.so
";

    #[test]
    fn of_a_program_with_the_library_its_own_calls_are_not_left_alone() {
        let alone = left_alone(MAPS, "libfreeboard.so", b"/opt/a tool");
        for own in [0x402000, 0x466fff, 0x600000] {
            assert_eq!(alone.holds(own), Some(false), "{own:#x}");
        }
        for elsewhere in [0x7f0000000000, 0x7f0000026000, 0x7f0000200000] {
            assert_eq!(alone.holds(elsewhere), Some(true), "{elsewhere:#x}");
        }
        for nowhere in [0, 0x400000, 0x467000, 0x7f0000001000] {
            assert_eq!(alone.holds(nowhere), None, "{nowhere:#x}");
        }
        assert_eq!(left_alone(MAPS, "libother.so", b"/opt/a tool"), Alone::Nothing);
        assert_eq!(left_alone(b"", "libfreeboard.so", b"/opt/a tool"), Alone::Nothing);
    }
}
