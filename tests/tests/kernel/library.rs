//! The built library itself: what it needs, what it exports, and that nothing in its environment can hurt a program.

use freeboard_budget::layout::{BUDGET_FILE, COUNTERS_FILE, budget_layout};
use freeboard_tests::elf::Elf;
use freeboard_tests::freeboard;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A directory of this test's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("freeboard-library-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("cannot make a directory");
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `dd` of 8 MiB under the library, with these variables.
fn copy(scratch: &Path, variables: &[(&str, &Path)]) -> Output {
    let output = scratch.join("copied");
    let mut command = Command::new("dd");
    command.args(["if=/dev/zero", "bs=64k", "count=128", "status=none"]).arg(format!("of={}", output.display()));
    command.env("LD_PRELOAD", freeboard::library()).envs(variables.iter().copied());
    command.output().expect("cannot run dd")
}

fn assert_untouched(what: &str, scratch: &Path, result: &Output) {
    assert!(result.status.success(), "{what}: {}", result.status);
    assert!(result.stdout.is_empty() && result.stderr.is_empty(), "{what}: the library said something: {result:?}");
    assert_eq!(fs::metadata(scratch.join("copied")).unwrap().len(), 8 << 20, "{what}");
}

#[test]
fn it_needs_libc_alone_and_can_neither_panic_nor_touch_thread_local_storage() {
    let library = Elf::read(&freeboard::library());
    library.assert_at_home_on_every_libc();
    let panics: Vec<_> = library.symbols.iter().filter(|name| name.contains("panic")).collect();
    assert!(panics.is_empty(), "panics can be reached: {panics:?}");
    assert!(library.symbols.len() > 100, "the symbol table was stripped, so this test says nothing");
}

#[test]
fn it_exports_the_write_family_and_what_moves_descriptors() {
    let exports = Elf::read(&freeboard::library()).exported;
    for name in "write pwrite pwrite64 writev pwritev pwritev64 pwritev2 pwritev64v2 sendfile sendfile64 copy_file_range \
                 splice fallocate fallocate64 posix_fallocate posix_fallocate64 ftruncate ftruncate64 syscall close dup \
                 dup2 dup3 fcntl fcntl64 close_range closefrom lseek lseek64 open open64 openat openat64 _exit read pread pread64 \
                 readv preadv preadv64 preadv2 preadv64v2 freopen freopen64 _Fork daemon forkpty login_tty"
        .split_whitespace()
    {
        assert!(exports.contains(name), "{name} is not interposed");
    }
    let strange = exports.iter().find(|export| export.contains("rust"));
    assert_eq!(strange, None, "a symbol that could meet another library's");
}

#[test]
fn a_foreign_or_damaged_region_is_refused_in_silence() {
    let scratch = Scratch::new("regions");
    let good = budget_layout();
    let mut header = Vec::new();
    header.extend(good.magic.to_le_bytes());
    header.extend((good.major + 1).to_le_bytes());
    header.resize(good.file_bytes as usize, 0);
    let mut huge_table = header.clone();
    huge_table[8..10].copy_from_slice(&good.major.to_le_bytes());
    huge_table[12..16].copy_from_slice(&good.header_bytes.to_le_bytes());
    huge_table[24..32].copy_from_slice(&good.file_bytes.to_le_bytes());
    huge_table[64..80].copy_from_slice(&[1, 0, 0, 0, 64, 1, 0, 0, 64, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("text", b"this is no region\n".repeat(400)),
        ("another major version", header.clone()),
        ("truncated", header[..100].to_vec()),
        ("a table beyond the end", huge_table),
        ("zeros", vec![0; good.file_bytes as usize]),
    ];
    for (what, content) in cases {
        fs::write(scratch.0.join(BUDGET_FILE), &content).unwrap();
        fs::write(scratch.0.join(COUNTERS_FILE), &content).unwrap();
        let result = copy(&scratch.0, &[("FREEBOARD_REGION", &scratch.0)]);
        assert_untouched(what, &scratch.0, &result);
    }
    fs::remove_file(scratch.0.join(BUDGET_FILE)).unwrap();
    fs::create_dir(scratch.0.join(BUDGET_FILE)).unwrap();
    assert_untouched("a directory", &scratch.0, &copy(&scratch.0, &[("FREEBOARD_REGION", &scratch.0)]));
    let nowhere = scratch.0.join("nowhere");
    let nothing: [(&str, &Path); 2] = [("FREEBOARD_REGION", &nowhere), ("FREEBOARD_SOCKET", &nowhere)];
    assert_untouched("nothing there", &scratch.0, &copy(&scratch.0, &nothing));
    let long = PathBuf::from("/".to_owned() + &"x".repeat(4000));
    let long: [(&str, &Path); 2] = [("FREEBOARD_REGION", &long), ("FREEBOARD_SOCKET", &long)];
    assert_untouched("a path too long", &scratch.0, &copy(&scratch.0, &long));
    let disabled: [(&str, &Path); 2] = [("FREEBOARD_DISABLED", Path::new("1")), ("FREEBOARD_REGION", &nowhere)];
    assert_untouched("disabled", &scratch.0, &copy(&scratch.0, &disabled));
}

#[test]
fn a_region_that_is_truncated_under_a_running_program_kills_nobody() {
    let scratch = Scratch::new("truncated");
    let region = scratch.0.join("region");
    fs::create_dir(&region).unwrap();
    let mut sidecar = Command::new(freeboard::program())
        .arg("sidecar")
        .args(["--region".as_ref(), region.as_os_str(), "--socket".as_ref(), scratch.0.join("socket").as_os_str()])
        .spawn()
        .unwrap();
    while !region.join(BUDGET_FILE).exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = scratch.0.join("written");
    // by the files alone, without a socket
    let mut writer = Command::new("sh")
        .args(["-c", "for n in 1 2 3 4 5 6 7 8 9 10; do dd if=/dev/zero bs=1M count=16 status=none; sleep 0.1; done"])
        .env("LD_PRELOAD", freeboard::library())
        .env("FREEBOARD_REGION", &region)
        .stdout(fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    for bytes in [100, 0, 4096] {
        std::thread::sleep(Duration::from_millis(200));
        for name in [BUDGET_FILE, COUNTERS_FILE] {
            fs::File::options().write(true).open(region.join(name)).unwrap().set_len(bytes).unwrap();
        }
    }
    let ended = writer.wait().unwrap();
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(fs::metadata(&output).unwrap().len(), 160 << 20);
}

#[test]
fn loading_it_changes_no_descriptor_and_no_output() {
    let listing = |preload: bool| {
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/self/fd; echo out; echo err >&2"]).stdin(Stdio::null());
        if preload {
            command.env("LD_PRELOAD", freeboard::library());
        }
        let output = command.output().unwrap();
        (output.stdout, output.stderr, output.status.code())
    };
    assert_eq!(listing(true), listing(false));
}
