//! `cargo xtask dist`: what is given away, for each architecture: the library, and the program as one static file, which
//! runs where there is no libc. Both stripped, in `target/dist/ARCHITECTURE`.

use anyhow::Context;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// Builds everything.
///
/// # Errors
/// Where this machine lacks what is needed, or the build fails.
pub fn run() -> anyhow::Result<()> {
    let sh = Shell::new()?;
    build(&sh, "x86_64")
}

/// With the toolchain that the environment names.
fn build(sh: &Shell, architecture: &str) -> anyhow::Result<()> {
    let target = format!("{architecture}-unknown-linux-gnu");
    let _strip = sh.push_env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let cargo = ["build", "--release", "--locked", "--target", &target, "--package"];
    cmd!(sh, "cargo {cargo...} freeboard-preload").run()?;
    // not for the library, which is to use the application's own libc
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.replace('-', "_").to_uppercase());
    cmd!(sh, "cargo {cargo...} freeboard-sidecar").env(flags, "-C target-feature=+crt-static").run()?;

    let products = target_dir()?;
    let dist = products.join("dist").join(architecture);
    sh.create_dir(&dist)?;
    for file in ["freeboard", "libfreeboard.so"] {
        sh.copy_file(products.join(&target).join("release").join(file), &dist)?;
        println!("{}: {} bytes", dist.join(file).display(), dist.join(file).metadata()?.len());
    }
    Ok(())
}

/// The directory that cargo builds into; this program lies in its `debug` or `release`.
fn target_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.ancestors().nth(2).map(Path::to_owned).context("this program does not lie in a target directory")
}
