//! The objects that the loader has brought into the process, and their symbols: what dlsym(RTLD_NEXT) answers, without
//! it. glibc before 2.34 keeps dlsym in a library of its own, and a library that asks for a symbol which is not there
//! kills every program that starts with it.
//!
//! Everything read here is what the loader itself has just read to relocate these objects.
//!
//! Source: elf(5), and the System V ABI's chapter on dynamic linking; for DT_GNU_HASH, binutils and glibc's
//! `elf/dl-lookup.c`.
//!
//! This is one of the modules that may say `unsafe`.

use core::ffi::{CStr, c_char, c_int, c_void};
use libc::{Elf64_Sym, dl_phdr_info, size_t};

const DT_HASH: i64 = 4;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const DT_VERSYM: i64 = 0x6fff_fff0;
const STT_TLS: u8 = 6;
const STT_GNU_IFUNC: u8 = 10;
/// A version that is there for old programs only.
const VERSYM_HIDDEN: u16 = 0x8000;

#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// One loaded object.
pub struct Object<'info> {
    info: &'info dl_phdr_info,
    strings: *const c_char,
    symbols: *const Elf64_Sym,
    /// Null where symbols have no versions.
    versions: *const u16,
    /// Either may be null.
    gnu_hash: *const u32,
    hash: *const u32,
}

/// Visits every object in the order in which symbols are looked up, and says whether it comes after this library. Once,
/// from the constructor: dl_iterate_phdr locks.
pub fn visit(mut visitor: impl FnMut(&Object, bool)) {
    let mut is_after = false;
    let mut each = |info: &dl_phdr_info| {
        let Some(object) = Object::new(info) else { return };
        visitor(&object, is_after);
        is_after |= object.segment(visit_one as *const () as usize).is_some();
    };
    let mut each: &mut dyn FnMut(&dl_phdr_info) = &mut each;
    // SAFETY: the callback gets `each` back as what it is, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(visit_one), (&raw mut each).cast()) };
}

unsafe extern "C" fn visit_one(info: *mut dl_phdr_info, _: size_t, each: *mut c_void) -> c_int {
    // SAFETY: the loader's description of one object, and the closure that `visit` passed.
    unsafe { (*each.cast::<&mut dyn FnMut(&dl_phdr_info)>())(&*info) };
    0
}

impl<'info> Object<'info> {
    /// `None` for one without symbols.
    fn new(info: &'info dl_phdr_info) -> Option<Object<'info>> {
        let null = core::ptr::null();
        let mut object = Object {
            info,
            strings: null,
            symbols: null.cast(),
            versions: null.cast(),
            gnu_hash: null.cast(),
            hash: null.cast(),
        };
        let base = info.dlpi_addr as usize;
        let dynamic = object.headers().find(|header| header.p_type == libc::PT_DYNAMIC)?;
        let mut entry = base.wrapping_add(dynamic.p_vaddr as usize) as *const Dynamic;
        loop {
            // SAFETY: the object's dynamic section, which ends with an entry of tag 0.
            let Dynamic { tag, value } = unsafe { entry.read() };
            // glibc has added the base already, musl has not
            let at = if value < base { base.wrapping_add(value) } else { value };
            match tag {
                0 => break,
                DT_STRTAB => object.strings = at as *const c_char,
                DT_SYMTAB => object.symbols = at as *const Elf64_Sym,
                DT_VERSYM => object.versions = at as *const u16,
                DT_GNU_HASH => object.gnu_hash = at as *const u32,
                DT_HASH => object.hash = at as *const u32,
                _ => {}
            }
            // SAFETY: as above: the last one has not been reached.
            entry = unsafe { entry.add(1) };
        }
        let is_whole = !object.strings.is_null() && !object.symbols.is_null();
        is_whole.then_some(object)
    }

    fn headers(&self) -> impl Iterator<Item = &'info libc::Elf64_Phdr> {
        let info = self.info;
        // SAFETY: the object has `dlpi_phnum` program headers, which stay while it is loaded.
        (0..usize::from(info.dlpi_phnum)).map(|index| unsafe { &*info.dlpi_phdr.add(index) })
    }

    /// The program itself, not a library.
    pub fn is_program(&self) -> bool {
        // SAFETY: the loader's own name for the object, a C string where there is one.
        self.info.dlpi_name.is_null() || unsafe { self.info.dlpi_name.read() } == 0
    }

    /// Has it a note by this owner (elf(5)), of four bytes with the zeros?
    pub fn has_note(&self, owner: &[u8; 4]) -> bool {
        let base = self.info.dlpi_addr as usize;
        self.headers().filter(|header| header.p_type == libc::PT_NOTE).any(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let mut at = 0usize;
            while at.saturating_add(16) <= header.p_memsz as usize {
                // SAFETY: within the object's notes, which are loaded, and aligned to four bytes.
                let [name, content, _, first] = unsafe { (start.wrapping_add(at) as *const [u32; 4]).read_unaligned() };
                if name == 4 && first.to_ne_bytes() == *owner {
                    return true;
                }
                let sizes = [name, content].map(|size| (size as usize).saturating_add(3) & !3);
                at = sizes.iter().fold(at.saturating_add(12), |at, &size| at.saturating_add(size));
            }
            false
        })
    }

    /// Where an address lies in this object: `Some(true)` in memory that is read-only after relocation.
    pub fn segment(&self, address: usize) -> Option<bool> {
        let base = self.info.dlpi_addr as usize;
        let mut is_readonly = None;
        for header in self.headers() {
            if address.wrapping_sub(base.wrapping_add(header.p_vaddr as usize)) >= header.p_memsz as usize {
                continue;
            }
            match header.p_type {
                libc::PT_LOAD => {
                    let is_relro = is_readonly == Some(true);
                    is_readonly = Some(is_relro || header.p_flags & libc::PF_W == 0);
                }
                libc::PT_GNU_RELRO => is_readonly = Some(true),
                _ => {}
            }
        }
        is_readonly
    }

    /// The address of a function or an object of data that it defines under this name, in its default version.
    pub fn symbol(&self, name: &CStr) -> Option<usize> {
        if self.gnu_hash.is_null() { self.by_hash(name) } else { self.by_gnu_hash(name) }
    }

    fn by_gnu_hash(&self, name: &CStr) -> Option<usize> {
        let hash = name.to_bytes().iter().fold(5381u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        let word = |index: usize| {
            // SAFETY: the table is laid out as read below: four words, a filter, buckets, chains that end with an odd
            // word.
            unsafe { self.gnu_hash.add(index).read() }
        };
        let (buckets, first, filter) = (word(0), word(1), word(2) as usize);
        let buckets_at = 4 + 2 * filter;
        let mut index = word(buckets_at + hash.checked_rem(buckets)? as usize);
        if index < first {
            return None;
        }
        loop {
            let chained = word(buckets_at + buckets as usize + (index - first) as usize);
            if chained | 1 == hash | 1
                && let Some(at) = self.defined(index, name)
            {
                return Some(at);
            }
            if chained & 1 == 1 {
                return None;
            }
            index = index.wrapping_add(1);
        }
    }

    fn by_hash(&self, name: &CStr) -> Option<usize> {
        if self.hash.is_null() {
            return None;
        }
        let hash = name.to_bytes().iter().fold(0u32, |hash, &byte| {
            let hash = (hash << 4).wrapping_add(byte.into());
            (hash ^ (hash >> 24 & 0xf0)) & 0x0fff_ffff
        });
        // SAFETY: the table has two words, its buckets, and a chain for every symbol, which ends with 0.
        let word = |index: usize| unsafe { self.hash.add(index).read() };
        let buckets = word(0);
        let mut index = word(2 + hash.checked_rem(buckets)? as usize);
        while index != 0 {
            if let Some(at) = self.defined(index, name) {
                return Some(at);
            }
            index = word(2 + buckets as usize + index as usize);
        }
        None
    }

    /// The address of the symbol with this number, if it is defined here, has this name, and is one to be bound to.
    fn defined(&self, index: u32, name: &CStr) -> Option<usize> {
        // SAFETY: the number comes from the object's own hash table; names are C strings in its table of strings.
        let (symbol, same_name, is_hidden) = unsafe {
            let symbol = &*self.symbols.add(index as usize);
            let same_name = CStr::from_ptr(self.strings.add(symbol.st_name as usize)) == name;
            let is_hidden = !self.versions.is_null() && self.versions.add(index as usize).read() & VERSYM_HIDDEN != 0;
            (symbol, same_name, is_hidden)
        };
        let kind = symbol.st_info & 0xf;
        let is_bound = symbol.st_shndx != 0 && kind != STT_TLS && kind != STT_GNU_IFUNC;
        let at = (self.info.dlpi_addr as usize).wrapping_add(symbol.st_value as usize);
        (same_name && is_bound && !is_hidden).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What dlsym says is the reference.
    #[test]
    fn finds_what_dlsym_finds() {
        for name in
            [c"write", c"pwrite64", c"fcntl64", c"syscall", c"_IO_file_jumps", c"_IO_file_write", c"no_such_symbol"]
        {
            // SAFETY: the names are C strings.
            let expected = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) } as usize;
            let mut found = None;
            visit(|object, _| found = found.or_else(|| object.symbol(name)));
            assert_eq!(found.unwrap_or(0), expected, "{name:?}");
        }
    }

    #[test]
    fn finds_it_by_the_older_hash_too() {
        let mut seen = 0;
        visit(|object, _| {
            if !object.hash.is_null() && !object.gnu_hash.is_null() {
                for name in [c"write", c"__vdso_clock_gettime", c"no_such_symbol"] {
                    assert_eq!(object.by_hash(name), object.by_gnu_hash(name), "{name:?}");
                }
                seen += 1;
            }
        });
        assert!(seen > 0, "no object with both tables");
    }

    #[test]
    fn tells_what_is_read_only() {
        static DATA: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(1);
        let mut seen = (None, None);
        visit(|object, _| {
            seen.0 = seen.0.or(object.segment(visit_one as *const () as usize));
            seen.1 = seen.1.or(object.segment(&raw const DATA as usize));
        });
        assert_eq!(seen, (Some(true), Some(false)));
    }
}
