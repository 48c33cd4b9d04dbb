//! What the programs under test need: source data, and small programs of our own, compiled on the spot.

use crate::lab::{Lab, path_str, run};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Debian packages with libraries that the tests preload beside ours or link to, and with programs that are on nobody's
/// PATH.
pub const APT_PACKAGES: &[&str] =
    &["libeatmydata1", "libfaketime", "libjemalloc2", "libtcmalloc-minimal4", "liburing-dev", "nocache", "postgresql"];

/// Where Debian keeps the libraries of aarch64 on other machines.
pub const AARCH64_LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// A file of random bytes in memory (tmpfs): its pages are charged to no group of ours, and never have to be read
/// again.
pub fn random_file(lab: &Lab, bytes: u64) -> PathBuf {
    let path = lab.dir().join(format!("random-{bytes}"));
    let copy = fs::copy(random_file_on_disk(bytes), &path);
    copy.unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
    path
}

/// A file of random bytes on a real disk, beside the build's products, where later runs find it again.
pub fn random_file_on_disk(bytes: u64) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let path = data_dir().join(format!("random-{bytes}"));
    let make = || -> io::Result<()> {
        if fs::metadata(&path).is_ok_and(|there| there.len() == bytes) {
            return Ok(());
        }
        let unfinished = path.with_extension(std::process::id().to_string());
        let mut file = File::create(&unfinished)?;
        io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut file)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    };
    make().unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
    path
}

/// An archive, in memory, of small files: 4 to 60 KiB each, 32 KiB on average.
pub fn archive_of_small_files(lab: &Lab, files: u64) -> PathBuf {
    let (dir, archive) = (lab.dir().join("small-files"), lab.dir().join("small-files.tar"));
    let random = fs::read(random_file_on_disk(16 << 20)).expect("cannot read random bytes");
    fs::create_dir(&dir).expect("cannot make a directory");
    for n in 0..files {
        let bytes = (4 << 10) + (n * 7919 % 57) as usize * 1024;
        let start = (n * 104_729) as usize % (random.len() - bytes);
        fs::write(dir.join(format!("{n}")), &random[start..start + bytes]).expect("cannot write a small file");
    }
    run("tar", &["--create", "--file", &path_str(&archive), "--directory", &path_str(&dir), "."]);
    fs::remove_dir_all(&dir).expect("cannot remove a directory");
    archive
}

/// Compiles a C program of `tests/programs` and returns its path.
pub fn c_program(lab: &Lab, name: &str) -> PathBuf {
    compile("cc", &[], lab, name)
}

/// The same, with liburing.
pub fn uring_program(lab: &Lab, name: &str) -> PathBuf {
    compile("cc", &["-Wl,--no-as-needed", "-luring"], lab, name)
}

/// The same for musl in the place of glibc.
pub fn musl_program(lab: &Lab, name: &str) -> PathBuf {
    compile("musl-gcc", &[], lab, name)
}

/// The same for aarch64: [`emulated`] runs it.
pub fn aarch64_program(lab: &Lab, name: &str) -> PathBuf {
    compile("aarch64-linux-gnu-gcc", &[], lab, name)
}

/// A program for aarch64, in an emulator that makes its system calls on this kernel. What it starts itself it starts on
/// this machine.
pub fn emulated(program: &Path) -> Command {
    let mut command = Command::new("/usr/bin/qemu-aarch64-static");
    command.args(["-L", AARCH64_LIBRARIES]).arg(program);
    command
}

/// The same without any libc to load.
pub fn static_program(lab: &Lab, name: &str) -> PathBuf {
    compile("cc", &["-static"], lab, name)
}

fn compile(compiler: &str, options: &[&str], lab: &Lab, name: &str) -> PathBuf {
    let program = lab.dir().join(format!("{name}-{compiler}{}", options.concat()));
    let (from, to) = (path_str(&programs_dir().join(format!("{name}.c"))), path_str(&program));
    let common = ["-O1", "-Wall", "-Werror", "-fexceptions", "-pthread", "-o", &to, &from];
    run(compiler, &[options, &common].concat());
    program
}

/// Compiles a Go program of `tests/programs` without cgo, which makes it static, and returns its path.
pub fn go_program(lab: &Lab, name: &str) -> PathBuf {
    compile_go("CGO_ENABLED=0", lab, name)
}

/// The same with cgo: a dynamic program.
pub fn cgo_program(lab: &Lab, name: &str) -> PathBuf {
    compile_go("CGO_ENABLED=1", lab, name)
}

fn compile_go(cgo: &str, lab: &Lab, name: &str) -> PathBuf {
    let program = lab.dir().join(format!("{name}-go"));
    let source = programs_dir().join(format!("{name}.go"));
    let cache = format!("GOCACHE={}", path_str(&data_dir().join("go-cache")));
    run("env", &[cgo, &cache, "go", "build", "-o", &path_str(&program), &path_str(&source)]);
    program
}

/// Compiles a Rust program of `tests/programs` and returns its path.
pub fn rust_program(lab: &Lab, name: &str) -> PathBuf {
    let program = lab.dir().join(format!("{name}-rust"));
    let source = programs_dir().join(format!("{name}.rs"));
    run("rustc", &["--edition=2024", "-O", "-o", &path_str(&program), &path_str(&source)]);
    program
}

/// Compiles a Java program of `tests/programs` and returns the directory to put on the class path.
pub fn java_classes(lab: &Lab, name: &str) -> PathBuf {
    let classes = lab.dir().join("classes");
    run("javac", &["-d", &path_str(&classes), &path_str(&programs_dir().join(format!("{name}.java")))]);
    classes
}

/// Our own small programs.
pub fn programs_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// Where what takes long to make or to fetch is kept for later runs, beside the build's products.
pub fn data_dir() -> PathBuf {
    let dir = crate::freeboard::target_dir().join("tests-data");
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    dir
}
