//! Which program a command starts, and whether it makes its system calls where no library is in between: it is static,
//! so that no library is loaded into it, or written in Go, whose calls are its own even where cgo has linked it with
//! libc.

use object::elf::PT_INTERP;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ReadCache};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// As many interpreters of interpreters as the kernel follows (`fs/exec.c`).
const MOST_INTERPRETERS: usize = 5;
/// The kernel reads this much of a file to find out what it is (BINPRM_BUF_SIZE).
const START_BYTES: usize = 256;

/// The compiler's mark (Go's `debug/buildinfo`): a stripped program has it too.
const GO_SECTIONS: [&str; 2] = [".go.buildinfo", ".note.go.buildid"];

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
    let data = ReadCache::new(file);
    let elf = ElfFile64::<Endianness, _>::parse(&data).ok()?;
    let is_static = !elf.elf_program_headers().iter().any(|header| header.p_type(elf.endian()) == PT_INTERP);
    Some(match (is_static, is_go(&elf)) {
        (true, _) => Program::Static,
        (false, true) => Program::Go,
        (false, false) => Program::Dynamic,
    })
}

/// Whether Go's compiler made it.
pub fn is_go<'data>(elf: &impl Object<'data>) -> bool {
    GO_SECTIONS.iter().any(|name| elf.section_by_name(name).is_some())
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
    use object::elf::PT_LOAD;
    use std::fs;

    /// A file header, a program header of a kind, and a section of this name.
    fn elf(kind: u32, section: &str) -> Vec<u8> {
        const START: usize = 64 + 56;
        let names = format!("\0{section}\0.shstrtab\0");
        let mut file = vec![0; START];
        // 64 bits, little endian, version 1
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[40..48].copy_from_slice(&(START as u64).to_le_bytes());
        // sizes and numbers of both kinds of headers, and which section has the names
        for (at, half) in [(52, 64u16), (54, 56), (56, 1), (58, 64), (60, 3), (62, 2)] {
            file[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        file[64..68].copy_from_slice(&kind.to_le_bytes());
        let data = START + 3 * 64;
        for (name, kind, bytes) in [(0u32, 0u32, 0), (1, 1, 0), (section.len() as u32 + 2, 3, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(data as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
            file.extend(header);
        }
        file.extend(names.as_bytes());
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
        let (fixed, loaded) = (put("fixed", &elf(PT_LOAD, ".data")), put("loaded", &elf(PT_INTERP, ".data")));
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
            (&put("go", &elf(PT_INTERP, ".go.buildinfo")), true),
            (&by_env, true),
            (&endless, false),
            (&put("empty", b""), false),
            (&put("text", b"echo"), false),
            (&put("cut-off", &elf(PT_INTERP, ".data")[..60]), false),
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
