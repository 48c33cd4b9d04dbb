//! `cargo xtask dist`: what is given away, for each architecture: the library, and the program as one static file, which
//! runs where there is no libc. Both stripped, in `target/dist/ARCHITECTURE`.

use crate::deps;
use anyhow::Context;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xshell::{Shell, cmd};

/// Debian packages that aarch64 is built with.
pub const APT_PACKAGES: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "mmdebstrap"];

/// A toolchain that is not this machine's own.
struct Toolchain {
    rustc: PathBuf,
    /// A compiler of C, for its libraries; and where lld is, which leaves out libraries that only dead code asks for.
    linker: &'static str,
    lld: PathBuf,
}

/// Builds everything.
///
/// # Errors
/// Where this machine lacks what is needed, or the build fails.
pub fn run() -> anyhow::Result<()> {
    deps::install(&deps::not_installed(APT_PACKAGES))?;
    let sh = Shell::new()?;
    let products = target_dir()?;
    build(&sh, &products, "x86_64", None)?;
    let toolchain = Toolchain::of_debian(&sh, &products)?;
    build(&sh, &products, "aarch64", Some(&toolchain))
}

fn build(sh: &Shell, products: &Path, architecture: &str, toolchain: Option<&Toolchain>) -> anyhow::Result<()> {
    let start = Instant::now();
    let target = format!("{architecture}-unknown-linux-gnu");
    let variable = |of: &str| format!("CARGO_TARGET_{}_{of}", target.replace('-', "_").to_uppercase());
    let _strip = sh.push_env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let mut flags = String::new();
    let mut environment = Vec::new();
    if let Some(Toolchain { rustc, linker, lld }) = toolchain {
        environment.push(sh.push_env("RUSTC", rustc));
        environment.push(sh.push_env(variable("LINKER"), linker));
        flags = format!("-C link-arg=-fuse-ld=lld -C link-arg=-B{}", lld.display());
    }
    let cargo = ["build", "--release", "--locked", "--target", &target, "--package"];
    cmd!(sh, "cargo {cargo...} freeboard-preload").env(variable("RUSTFLAGS"), &flags).run()?;
    // not for the library, which is to use the application's own libc
    flags.push_str(" -C target-feature=+crt-static");
    cmd!(sh, "cargo {cargo...} freeboard-sidecar").env(variable("RUSTFLAGS"), &flags).run()?;

    let dist = products.join("dist").join(architecture);
    sh.create_dir(&dist)?;
    for file in ["freeboard", "libfreeboard.so"] {
        sh.copy_file(products.join(&target).join("release").join(file), &dist)?;
        println!("{}: {} bytes", dist.join(file).display(), dist.join(file).metadata()?.len());
    }
    println!("{architecture}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

impl Toolchain {
    /// Debian's newest rustc with the standard library for aarch64, unpacked into a directory of its own, where it stays.
    /// It wants a libc that may be newer than this machine's, and runs with its own; what it makes is linked with this
    /// machine's.
    fn of_debian(sh: &Shell, products: &Path) -> anyhow::Result<Toolchain> {
        let root = products.join("dist").join("debian-sid");
        if !root.exists() {
            let unfinished = root.with_extension("unfinished");
            sh.remove_path(&unfinished)?;
            // mirrors keep old lists of it
            let options = ["--quiet", "--mode=root", "--aptopt=Acquire::Check-Valid-Until \"false\""];
            let packages =
                ["--variant=extract", "--architectures=amd64,arm64", "--include=rustc,libstd-rust-dev:arm64"];
            cmd!(sh, "mmdebstrap {options...} {packages...} sid {unfinished}").run()?;
            fs::rename(&unfinished, &root)?;
        }
        let (rustc, usr) = (root.join("rustc"), root.join("usr").display().to_string());
        let libraries = format!("{usr}/lib/x86_64-linux-gnu");
        let loader = format!("{usr}/lib64/ld-linux-x86-64.so.2 --library-path {libraries}");
        sh.write_file(&rustc, format!("#!/bin/sh\nexec {loader} {usr}/bin/rustc --sysroot {usr} \"$@\"\n"))?;
        fs::set_permissions(&rustc, Permissions::from_mode(0o755))?;
        let own = cmd!(sh, "rustc --print sysroot").read()?;
        let lld = Path::new(&own).join("lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld");
        Ok(Toolchain { rustc, linker: "aarch64-linux-gnu-gcc", lld })
    }
}

/// The directory that cargo builds into; this program lies in its `debug` or `release`.
fn target_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.ancestors().nth(2).map(Path::to_owned).context("this program does not lie in a target directory")
}
