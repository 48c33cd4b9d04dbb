//! Link arguments of the library.
fn main() {
    // Functions of `core` are compiled for unwinding, so their tables name the personality routine, which drags the
    // whole of the unwinder and the panic machinery in. Nothing in the library unwinds: the name stands for nothing.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--defsym=rust_eh_personality=0");
    println!("cargo:rerun-if-changed=build.rs");
}
