//! The kernel's own count of what is written to a disk with XFS: its tracepoints, in a tracing instance of our own.
//! Each call that puts bytes into the page cache is one event, whoever makes it and by whatever system call; mappings
//! are none.

use crate::lab::Lab;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

const INSTANCES: &str = "/sys/kernel/tracing/instances";
const BUFFERED: &str = "xfs_file_buffered_write";
const DIRECT: &str = "xfs_file_direct_write";
/// For each processor; an event takes about 60 bytes.
const BUFFER_KIB: u32 = 32 << 10;

/// What was counted, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Into the page cache.
    pub buffered: u64,
    /// Past it (O_DIRECT).
    pub direct: u64,
}

/// A count that goes on.
#[derive(Debug)]
pub struct Count {
    instance: PathBuf,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Written>>,
}

/// Why the kernel cannot count here.
pub fn cannot_count() -> Option<&'static str> {
    let is_there = Path::new("/sys/kernel/tracing/events/xfs").join(BUFFERED).exists();
    (!is_there).then_some("it needs tracefs at /sys/kernel/tracing, with XFS's events")
}

impl Count {
    /// Starts to count for a disk.
    pub fn start(lab: &Lab, device: &Path) -> Count {
        let instance = Path::new(INSTANCES).join(lab.name("written"));
        fs::create_dir(&instance).unwrap_or_else(|error| panic!("cannot make {}: {error}", instance.display()));
        let stop = Arc::new(AtomicBool::new(false));
        // from here on it is removed again
        let mut count = Count { instance, stop, reader: None };
        let put = |file: &str, text: &str| {
            let path = count.instance.join(file);
            fs::write(&path, text).unwrap_or_else(|error| panic!("cannot set {}: {error}", path.display()));
        };
        let number =
            fs::read_to_string(Path::new("/sys/class/block").join(device.file_name().unwrap_or_default()).join("dev"));
        let number = number.unwrap_or_else(|error| panic!("{} has no number: {error}", device.display()));
        let (major, minor) = number.trim().split_once(':').expect("a device's number has two parts");
        let [major, minor] = [major, minor].map(|part| part.parse::<u32>().expect("a device's number is none"));
        put("buffer_size_kb", &BUFFER_KIB.to_string());
        for event in [BUFFERED, DIRECT] {
            // the kernel's own form of a device's number
            put(&format!("events/xfs/{event}/filter"), &format!("dev == {}", major << 20 | minor));
            put(&format!("events/xfs/{event}/enable"), "1");
        }
        let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(count.instance.join("trace_pipe"));
        let pipe = pipe.expect("cannot open the trace");
        let stop = count.stop.clone();
        count.reader = Some(spawn(move || read(pipe, &stop)));
        count
    }

    /// Ends, and says what was counted.
    pub fn finish(mut self) -> Written {
        fs::write(self.instance.join("events/enable"), "0").expect("cannot end the trace");
        self.stop.store(true, Ordering::Release);
        let reader = self.reader.take().expect("it was started");
        reader.join().expect("the trace could not be read")
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {error}", self.instance.display());
        }
    }
}

/// Removes what was left behind under a name.
pub fn remove(name: &str) {
    for instance in fs::read_dir(INSTANCES).into_iter().flatten().flatten() {
        if instance.file_name().to_string_lossy().starts_with(name) {
            let _ = fs::remove_dir(instance.path());
        }
    }
}

fn read(mut pipe: File, stop: &AtomicBool) -> Written {
    let (mut written, mut text, mut buffer) = (Written::default(), Vec::new(), vec![0; 1 << 20]);
    loop {
        let is_last = stop.load(Ordering::Acquire);
        match pipe.read(&mut buffer) {
            Ok(bytes @ 1..) => {
                text.extend_from_slice(&buffer[..bytes]);
                let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
                for line in String::from_utf8_lossy(&text[..whole]).lines() {
                    add(&mut written, line);
                }
                text.drain(..whole);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock && error.kind() != ErrorKind::Interrupted => {
                panic!("cannot read the trace: {error}")
            }
            // nothing is there
            _ if is_last => return written,
            _ => sleep(Duration::from_millis(5)),
        }
    }
}

fn add(written: &mut Written, line: &str) {
    assert!(!line.contains("LOST"), "the trace is not whole: {line}");
    let bytes = line.rsplit_once("bytecount 0x").and_then(|(_, bytes)| u64::from_str_radix(bytes.trim(), 16).ok());
    let bytes = bytes.unwrap_or_else(|| panic!("a line of the trace says no bytes: {line}"));
    if line.contains(DIRECT) {
        written.direct += bytes;
    } else {
        written.buffered += bytes;
    }
}
