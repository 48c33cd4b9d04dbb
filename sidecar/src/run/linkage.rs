//! Which program a command starts, and whether it makes its system calls where no library is in between: it is static, so
//! that no library is loaded into it, or written in Go, whose calls are its own even where cgo has linked it with libc.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// As many interpreters of interpreters as the kernel follows (`fs/exec.c`).
const MOST_INTERPRETERS: usize = 5;
/// The kernel reads this much of a file to find out what it is (BINPRM_BUF_SIZE).
const START_BYTES: usize = 256;

/// Program header types (elf(5)): what is loaded, and what names the loader.
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
/// Program header flag: it may be written to.
const PF_W: u32 = 2;
const CLASS_64: u8 = 2;

/// What a program compiled by Go has near the beginning of its data (Go's `debug/buildinfo`).
const GO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// As far as it is looked for: a linker other than Go's puts the C side's data in front of it.
const GO_SEARCH_BYTES: u64 = 1 << 20;

/// What a command starts.
#[derive(PartialEq, Eq, Debug)]
pub struct Started {
    /// The files in the order in which they are followed: scripts, and last the program that runs.
    pub files: Vec<PathBuf>,
    /// Whether no library sees that program write. `None`: it cannot be read, is no program, or is for another kind of
    /// processor.
    pub is_unseen: Option<bool>,
}

/// Whether the command starts a program that no library sees write. `false` also where that cannot be told.
pub fn is_unseen(command: &OsStr, path_variable: &OsStr) -> bool {
    follow(command, path_variable).is_some_and(|started| started.is_unseen == Some(true))
}

/// Follows a command to the program that runs. `None`: there is no such file, or the interpreters have no end.
pub fn follow(command: &OsStr, path_variable: &OsStr) -> Option<Started> {
    let mut files = Vec::new();
    let mut program = located(command, path_variable)?;
    for _ in 0..=MOST_INTERPRETERS {
        let looked = look(&program, path_variable);
        files.push(program);
        match looked {
            Some(Program::Script(interpreter)) => program = interpreter,
            Some(linked) => return Some(Started { files, is_unseen: Some(linked != Program::Dynamic) }),
            None => return Some(Started { files, is_unseen: None }),
        }
    }
    None
}

/// Where the command lies, as execvp(3) finds it.
fn located(command: &OsStr, path_variable: &OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command)).filter(|file| file.exists());
    }
    std::env::split_paths(path_variable).map(|dir| dir.join(command)).find(|file| file.is_file())
}

#[derive(PartialEq, Eq, Debug)]
enum Program {
    Static,
    /// With a loader.
    Go,
    Dynamic,
    Script(PathBuf),
}

fn look(path: &Path, path_variable: &OsStr) -> Option<Program> {
    let file = File::open(path).ok()?;
    let mut start = Vec::new();
    (&file).take(START_BYTES as u64).read_to_end(&mut start).ok()?;
    if let Some(line) = start.strip_prefix(b"#!") {
        return interpreter(line, path_variable).map(Program::Script);
    }
    if !start.starts_with(b"\x7fELF") || start.get(4) != Some(&CLASS_64) {
        return None;
    }
    let half = |at: usize| Some(u64::from(u16::from_ne_bytes(start.get(at..at + 2)?.try_into().ok()?)));
    let table = u64::from_ne_bytes(start.get(32..40)?.try_into().ok()?);
    let (size, count) = (half(54)?, half(56)?);
    let (mut is_static, mut is_go) = (true, false);
    for index in 0..count {
        let header = Header::read(&file, table.checked_add(index * size)?)?;
        is_static &= header.kind != PT_INTERP;
        is_go |= header.kind == PT_LOAD && header.flags & PF_W != 0 && has_go_magic(&file, &header);
    }
    Some(match (is_static, is_go) {
        (true, _) => Program::Static,
        (false, true) => Program::Go,
        (false, false) => Program::Dynamic,
    })
}

/// A program header, as far as it matters here.
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    file_bytes: u64,
}

impl Header {
    fn read(file: &File, at: u64) -> Option<Header> {
        let mut bytes = [0; 40];
        file.read_exact_at(&mut bytes, at).ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Header { kind: word(0)?, flags: word(4)?, offset: long(8)?, file_bytes: long(32)? })
    }
}

fn has_go_magic(file: &File, data: &Header) -> bool {
    let mut bytes = vec![0; data.file_bytes.min(GO_SEARCH_BYTES) as usize];
    file.read_exact_at(&mut bytes, data.offset).is_ok()
        && bytes.chunks_exact(16).any(|aligned| aligned.starts_with(GO_MAGIC))
}

/// What the first line of a script names, behind its `#!`. `env NAME` stands for the program of that name.
fn interpreter(line: &[u8], path_variable: &OsStr) -> Option<PathBuf> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let program = words.next()?;
    let is_of_env = |word: &&[u8]| word.starts_with(b"-") || word.contains(&b'=');
    match words.find(|word| !is_of_env(word)) {
        Some(name) if program.ends_with(b"/env") => located(OsStr::from_bytes(name), path_variable),
        _ => Some(OsStr::from_bytes(program).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A program's file header, a program header of a kind, and one of data that follow it.
    fn elf(kind: u32, data: &[u8]) -> Vec<u8> {
        const START: usize = 64 + 2 * 56;
        let mut file = vec![0; START];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32..40].copy_from_slice(&64u64.to_ne_bytes());
        file[54..56].copy_from_slice(&56u16.to_ne_bytes());
        file[56..58].copy_from_slice(&2u16.to_ne_bytes());
        file[64..68].copy_from_slice(&kind.to_ne_bytes());
        file[120..124].copy_from_slice(&PT_LOAD.to_ne_bytes());
        file[124..128].copy_from_slice(&PF_W.to_ne_bytes());
        file[128..136].copy_from_slice(&(START as u64).to_ne_bytes());
        file[152..160].copy_from_slice(&(data.len() as u64).to_ne_bytes());
        file.extend(data);
        file
    }

    #[test]
    fn a_program_is_unseen_without_a_loader_and_in_go() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let (fixed, loaded) = (put("fixed", &elf(PT_LOAD, b"")), put("loaded", &elf(PT_INTERP, b"not of interest")));
        let go_data = [&[0; 4096 + 32], GO_MAGIC, &[8, 2]].concat();
        let go_data = [&go_data[..], &[0; 16][..16 - go_data.len() % 16]].concat();
        let script = put("script", format!("#! {} -x\nwords\n", fixed.display()).as_bytes());
        let of_script = put("of-script", format!("#!{}\n", script.display()).as_bytes());
        let loaded_script = put("loaded-script", format!("#!{}", loaded.display()).as_bytes());
        let by_env = put("by-env", b"#!/usr/bin/env -S A=b fixed -x\n");
        let endless = put("endless", format!("#!{}\n", dir.path().join("endless").display()).as_bytes());
        let cases = [
            (fixed.as_path(), true),
            (&loaded, false),
            (&script, true),
            (&of_script, true),
            (&loaded_script, false),
            (&put("go", &elf(PT_INTERP, &go_data)), true),
            (&put("go-cut-off", &elf(PT_INTERP, &go_data)[..4096]), false),
            (&by_env, true),
            (&endless, false),
            (&put("empty", b""), false),
            (&put("text", b"echo"), false),
            (&put("cut-off", &elf(PT_INTERP, b"")[..60]), false),
            (&dir.path().join("missing"), false),
            (dir.path(), false),
        ];
        for (path, want) in cases {
            assert_eq!(is_unseen(path.as_os_str(), dir.path().as_os_str()), want, "{}", path.display());
        }
        assert!(is_unseen("fixed".as_ref(), dir.path().as_os_str()));
        assert!(!is_unseen("fixed".as_ref(), "/nowhere".as_ref()));
        let started = follow("of-script".as_ref(), dir.path().as_os_str()).unwrap();
        assert_eq!(started, Started { files: vec![of_script, script, fixed], is_unseen: Some(true) });
        assert_eq!(follow("missing".as_ref(), dir.path().as_os_str()), None);
        assert_eq!(follow("text".as_ref(), dir.path().as_os_str()).unwrap().is_unseen, None);
    }
}
