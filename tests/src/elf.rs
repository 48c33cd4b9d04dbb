//! What an ELF file asks of the machine that it is started on, and what a libc offers it.

use object::read::StringTable;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, elf};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A library or a program.
#[derive(Debug)]
pub struct Elf {
    /// The loader that it names.
    pub has_loader: bool,
    /// It has thread-local storage.
    pub has_tls: bool,
    /// A segment is both writable and executable.
    pub has_writable_code: bool,
    /// Libraries that it names.
    pub needed: Vec<String>,
    /// Versions of symbols that these must have.
    pub versions: Vec<String>,
    /// Symbols without which it is not loaded.
    pub undefined: BTreeSet<String>,
    /// Symbols that it has for others.
    pub exported: BTreeSet<String>,
    /// All symbols, where it is not stripped.
    pub symbols: Vec<String>,
}

impl Elf {
    /// Reads a file.
    ///
    /// # Panics
    /// Where it is not there, or is no 64-bit ELF file.
    pub fn read(path: &Path) -> Elf {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        Elf::parse(&bytes).unwrap_or_else(|error| panic!("cannot understand {}: {error}", path.display()))
    }

    fn parse(bytes: &[u8]) -> object::Result<Elf> {
        let file = ElfFile64::<Endianness>::parse(bytes)?;
        let (endian, data) = (file.endian(), file.data());
        let headers = file.elf_header().program_headers(endian, data)?;
        let has = |kind: u32| headers.iter().any(|header| header.p_type(endian) == kind);
        let writable_code = elf::PF_W | elf::PF_X;
        let is_writable_code = |flags: u32, kind: u32| kind == elf::PT_LOAD && flags & writable_code == writable_code;

        let section = |name| file.section_by_name(name).map_or(Ok(&[][..]), |section| section.data());
        let strings = section(".dynstr")?;
        let strings = StringTable::new(strings, 0, strings.len() as u64);
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let mut needed = Vec::new();
        for header in headers {
            for entry in header.dynamic(endian, data)?.unwrap_or_default() {
                if entry.d_tag(endian) == u64::from(elf::DT_NEEDED) {
                    needed.push(text(entry.string(endian, strings)?));
                }
            }
        }
        let mut versions = Vec::new();
        if let Some((mut libraries, _)) = file.elf_section_table().gnu_verneed(endian, data)? {
            while let Some((_, mut wanted)) = libraries.next()? {
                while let Some(version) = wanted.next()? {
                    versions.push(text(version.name(endian, strings)?));
                }
            }
        }
        let (mut undefined, mut exported) = (BTreeSet::new(), BTreeSet::new());
        for symbol in file.dynamic_symbols() {
            let name = symbol.name()?.to_owned();
            match symbol.is_undefined() {
                true if symbol.is_weak() || name.is_empty() => {}
                true => drop(undefined.insert(name)),
                false => drop(exported.insert(name)),
            }
        }
        Ok(Elf {
            has_loader: has(elf::PT_INTERP),
            has_tls: has(elf::PT_TLS),
            has_writable_code: headers
                .iter()
                .any(|header| is_writable_code(header.p_flags(endian), header.p_type(endian))),
            needed,
            versions,
            undefined,
            exported,
            symbols: file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect(),
        })
    }

    /// What every image's libc must have: nothing but libc is named, and no version of a symbol that came after
    /// glibc 2.17.
    pub fn assert_at_home_on_every_libc(&self) {
        assert_eq!(self.needed, ["libc.so.6"]);
        assert!(!self.versions.is_empty(), "no versions");
        for version in &self.versions {
            let minor =
                version.strip_prefix("GLIBC_2.").and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
            assert!(
                minor.is_some_and(|minor: u32| minor <= 17),
                "no program on a glibc before {version} starts with it"
            );
        }
        assert!(!self.has_tls, "thread-local storage");
        assert!(!self.has_writable_code, "a segment both writable and executable");
    }
}
