//! Whether a command's program is static: no loader starts it, so no library is loaded into it.

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

/// Program header type that names the loader (elf(5)).
const PT_INTERP: u32 = 3;
const CLASS_64: u8 = 2;

/// Whether the command starts a static program. `false` also where that cannot be told: it cannot be read, or is for
/// another kind of processor.
pub fn is_static(command: &OsStr, path_variable: &OsStr) -> bool {
    let mut program = located(command, path_variable);
    for _ in 0..=MOST_INTERPRETERS {
        match program.as_deref().and_then(look) {
            Some(Program::Static) => return true,
            Some(Program::Script(interpreter)) => program = Some(interpreter),
            Some(Program::Dynamic) | None => return false,
        }
    }
    false
}

/// Where the command lies, as execvp(3) finds it.
fn located(command: &OsStr, path_variable: &OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(command.into());
    }
    std::env::split_paths(path_variable).map(|dir| dir.join(command)).find(|file| file.is_file())
}

#[derive(PartialEq, Eq, Debug)]
enum Program {
    Static,
    Dynamic,
    Script(PathBuf),
}

fn look(path: &Path) -> Option<Program> {
    let file = File::open(path).ok()?;
    let mut start = Vec::new();
    (&file).take(START_BYTES as u64).read_to_end(&mut start).ok()?;
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next()?.trim_ascii();
        let interpreter = line.split(|byte| byte.is_ascii_whitespace()).next()?;
        return Some(Program::Script(OsStr::from_bytes(interpreter).into()));
    }
    if !start.starts_with(b"\x7fELF") || start.get(4) != Some(&CLASS_64) {
        return None;
    }
    let half = |at: usize| Some(u64::from(u16::from_ne_bytes(start.get(at..at + 2)?.try_into().ok()?)));
    let table = u64::from_ne_bytes(start.get(32..40)?.try_into().ok()?);
    let (size, count) = (half(54)?, half(56)?);
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, table.checked_add(index * size)?).ok()?;
        if u32::from_ne_bytes(kind) == PT_INTERP {
            return Some(Program::Dynamic);
        }
    }
    Some(Program::Static)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A program's file header and one program header of a kind.
    fn elf(kind: u32) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32..40].copy_from_slice(&64u64.to_ne_bytes());
        file[54..56].copy_from_slice(&56u16.to_ne_bytes());
        file[56..58].copy_from_slice(&1u16.to_ne_bytes());
        file.extend(kind.to_ne_bytes());
        file.resize(64 + 56, 0);
        file
    }

    #[test]
    fn a_program_without_a_loader_is_static() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let (fixed, loaded) = (put("fixed", &elf(1)), put("loaded", &elf(PT_INTERP)));
        let script = put("script", format!("#! {} -x\nwords\n", fixed.display()).as_bytes());
        let of_script = put("of-script", format!("#!{}\n", script.display()).as_bytes());
        let loaded_script = put("loaded-script", format!("#!{}", loaded.display()).as_bytes());
        let endless = put("endless", format!("#!{}\n", dir.path().join("endless").display()).as_bytes());
        let cases = [
            (fixed.as_path(), true),
            (&loaded, false),
            (&script, true),
            (&of_script, true),
            (&loaded_script, false),
            (&endless, false),
            (&put("empty", b""), false),
            (&put("text", b"echo"), false),
            (&put("cut-off", &elf(PT_INTERP)[..60]), false),
            (&dir.path().join("missing"), false),
            (dir.path(), false),
        ];
        for (path, want) in cases {
            assert_eq!(is_static(path.as_os_str(), "".as_ref()), want, "{}", path.display());
        }
        assert!(is_static("fixed".as_ref(), dir.path().as_os_str()));
        assert!(!is_static("fixed".as_ref(), "/nowhere".as_ref()));
    }
}
