//! What a file says of the program or library in it (ELF, elf(5)).

use crate::run::linkage;
use anyhow::{Context, Result, bail};
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{Architecture, Endianness, FileKind, Object, ObjectKind, ObjectSection, ObjectSymbol, ReadCache};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How a program comes by its libraries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Linkage {
    /// This loader loads them, and what LD_PRELOAD names.
    Dynamic(PathBuf),
    /// They are in its file.
    Static,
    /// The same, and it can lie at any address.
    StaticPie,
}

/// The C library.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Libc {
    /// With its version, where that can be read.
    Glibc(Option<String>),
    /// Alpine's, mostly.
    Musl,
    /// The program makes its system calls by itself.
    None,
    /// Linked into a program that does not say which.
    Unknown,
}

/// What of a program's language decides how it writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Runtime {
    Go,
    GoWithCgo,
    Java,
    Node,
    Perl,
    Python,
    Rust,
    Cpp,
    C,
}

impl Runtime {
    /// The runtime makes system calls of its own, past every C library.
    pub const fn is_go(self) -> bool {
        matches!(self, Runtime::Go | Runtime::GoWithCgo)
    }

    /// By what a program maps files to write to them, where the runtime decides that: `Some(None)`: it has nothing for
    /// it.
    pub const fn maps_files(self) -> Option<Option<&'static str>> {
        match self {
            Runtime::Java => Some(Some("if it has FileChannel.map do so")),
            Runtime::Python => Some(Some("if it uses the module mmap")),
            Runtime::Node => Some(None),
            _ => None,
        }
    }
}

/// What has bytes written that no write call carries, or that a write call inside libc does; and the functions that a
/// file imports if it does so.
const WRITERS: [(Use, &[&str]); 4] = [
    (
        Use::Stdio,
        &[
            "fwrite",
            "fprintf",
            "fputs",
            "fputc",
            "putc",
            "puts",
            "putchar",
            "printf",
            "vfprintf",
            "vprintf",
            "fwrite_unlocked",
            "fputs_unlocked",
            "fputc_unlocked",
            "putc_unlocked",
            "fputwc",
            "fwprintf",
            "__printf_chk",
            "__fprintf_chk",
            "__vfprintf_chk",
            "__overflow",
        ],
    ),
    (Use::Mapped, &["msync"]),
    (Use::Aio, &["io_submit", "aio_write", "aio_write64", "lio_listio", "lio_listio64"]),
    (Use::IoUring, &["io_uring_setup", "io_uring_queue_init", "io_uring_queue_init_params"]),
];

/// A way to write besides write calls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
pub enum Use {
    Stdio,
    Mapped,
    Aio,
    IoUring,
}

/// Symbols by which a runtime that is linked into its program is known.
const EXPORTS: [(Runtime, &str); 3] =
    [(Runtime::Node, "node_module_register"), (Runtime::Python, "Py_BytesMain"), (Runtime::Perl, "perl_alloc")];
/// Libraries by which one is known that is not: what their names start with.
const LIBRARIES: [(Runtime, &str); 5] = [
    (Runtime::Java, "libjli.so"),
    (Runtime::Java, "libjvm.so"),
    (Runtime::Node, "libnode.so"),
    (Runtime::Perl, "libperl.so"),
    (Runtime::Python, "libpython"),
];

/// One file.
#[derive(Debug)]
pub struct Elf {
    /// For this machine's kind of processor, in 64 bits.
    pub is_native: bool,
    pub linkage: Linkage,
    /// The libraries that it names itself.
    needed: Vec<String>,
    /// What it imports to write by other ways than write calls.
    pub imports: Vec<(Use, &'static str)>,
    /// What it exports or says of its own runtime.
    runtime: Option<Runtime>,
    has_glibc: bool,
}

impl Elf {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read or is no program.
    pub fn read(path: &Path) -> Result<Elf> {
        let file = File::open(path)?;
        let data = ReadCache::new(file);
        match FileKind::parse(&data) {
            Ok(FileKind::Elf64) => Elf::parse(&data).context("its tables are damaged"),
            Ok(FileKind::Elf32) => Ok(Elf {
                is_native: false,
                linkage: Linkage::Static,
                needed: Vec::new(),
                imports: Vec::new(),
                runtime: None,
                has_glibc: false,
            }),
            _ => bail!("it is no program (not ELF, and without a line that starts with #!)"),
        }
    }

    fn parse(data: &ReadCache<File>) -> object::Result<Elf> {
        let elf = ElfFile64::<Endianness, _>::parse(data)?;
        let endian = elf.endian();
        let mut linkage = if elf.kind() == ObjectKind::Executable { Linkage::Static } else { Linkage::StaticPie };
        for header in elf.elf_header().program_headers(endian, data)? {
            if let Some(loader) = header.interpreter(endian, data)? {
                linkage = Linkage::Dynamic(OsStr::from_bytes(loader).into());
            }
        }
        let mut needed = Vec::new();
        let sections = elf.elf_section_table();
        if let Some((entries, strings)) = sections.dynamic(endian, data)? {
            let strings = sections.strings(endian, data, strings)?;
            for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(object::elf::DT_NEEDED)) {
                let name = u32::try_from(entry.d_val(endian)).ok().and_then(|at| strings.get(at).ok());
                needed.extend(name.map(|name| String::from_utf8_lossy(name).into_owned()));
            }
        }
        let (mut imports, mut runtime) = (Vec::new(), None);
        for symbol in elf.dynamic_symbols() {
            let name = symbol.name().unwrap_or_default();
            if symbol.is_undefined() {
                let writer = |&(one, names): &(Use, &'static [&'static str])| {
                    names.iter().find(|&&wanted| wanted == name).map(|&name| (one, name))
                };
                imports.extend(WRITERS.iter().find_map(writer));
            } else {
                runtime = runtime.or(EXPORTS.iter().find(|&&(_, wanted)| wanted == name).map(|&(runtime, _)| runtime));
            }
        }
        let is_rust = elf.section_by_name(".comment").and_then(|section| section.data().ok());
        if is_rust.is_some_and(|comment| comment.windows(5).any(|word| word == b"rustc")) {
            runtime = runtime.or(Some(Runtime::Rust));
        }
        if linkage::is_go(&elf) {
            runtime = Some(Runtime::Go);
        }
        let native = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
        Ok(Elf {
            is_native: elf.architecture() == native,
            linkage,
            needed,
            imports,
            runtime,
            // of a static program; glibc keeps its tables of functions for streams in a section of their own
            has_glibc: ["__libc_IO_vtables", "__libc_freeres_fn"]
                .iter()
                .any(|name| elf.section_by_name(name).is_some()),
        })
    }

    /// The program's libc, given the libraries that it has.
    pub fn libc(&self, libraries: &[PathBuf]) -> Libc {
        let named = |start: &str| libraries.iter().find(|path| name(path).starts_with(start));
        match (&self.linkage, named("libc.so.6")) {
            (_, Some(glibc)) => Libc::Glibc(version(glibc)),
            _ if named("ld-musl-").or(named("libc.musl-")).is_some() => Libc::Musl,
            (Linkage::Dynamic(_), None) => Libc::None,
            _ if self.has_glibc => Libc::Glibc(None),
            _ if self.runtime == Some(Runtime::Go) => Libc::None,
            _ => Libc::Unknown,
        }
    }

    /// The program's runtime, given the libraries that it has.
    pub fn runtime(&self, libraries: &[PathBuf], libc: &Libc) -> Runtime {
        let by_library = || {
            let known = |&&(_, start): &&(Runtime, &str)| libraries.iter().any(|path| name(path).starts_with(start));
            LIBRARIES.iter().find(known).map(|&(runtime, _)| runtime)
        };
        // others have C++ in their libraries without being written in it
        let is_cpp =
            || self.needed.iter().any(|name| name.starts_with("libstdc++.so") || name.starts_with("libc++.so"));
        let otherwise = || if is_cpp() { Runtime::Cpp } else { Runtime::C };
        match self.runtime.or_else(by_library).unwrap_or_else(otherwise) {
            Runtime::Go if *libc != Libc::None => Runtime::GoWithCgo,
            runtime => runtime,
        }
    }
}

/// A file's name.
pub fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// glibc says its version in a text: "GNU C Library (…) stable release version 2.36."
fn version(glibc: &Path) -> Option<String> {
    let content = fs::read(glibc).ok()?;
    let find = |from: usize, text: &[u8]| {
        Some(from + content[from..].windows(text.len()).position(|at| at == text)? + text.len())
    };
    let start = find(find(0, b"GNU C Library")?, b"version ")?;
    let digits = content[start..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let version = String::from_utf8_lossy(&content[start..start + digits]);
    Some(version.trim_end_matches('.').to_owned())
}
