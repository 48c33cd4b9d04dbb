//! `cargo xtask dist`: what is given away, for each architecture: the library, and the program as one static file,
//! which runs where there is no libc. Both stripped, in `target/dist/ARCHITECTURE`.

use crate::deps;
use anyhow::{Context, anyhow};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xshell::{PushEnv, Shell, cmd};

/// Debian packages that aarch64 is built with.
pub const APT_PACKAGES: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "mmdebstrap"];

const AARCH64: &str = "aarch64-unknown-linux-gnu";

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
    let products = target_dir()?;
    fs::create_dir_all(products.join("dist"))?;
    // side by side: most of the time of each is one thread's, the linker's
    std::thread::scope(|scope| {
        let aarch64 = scope.spawn(|| -> anyhow::Result<()> {
            let sh = Shell::new()?;
            let toolchain = Toolchain::of_debian(&sh, &products)?;
            let _toolchain = toolchain.put_in_force(&sh);
            // in a target directory of its own: in a common one each would wait for the other's lock
            let own = products.join("aarch64");
            let flags =
                ["--target", AARCH64, "--target-dir", own.to_str().context("the target directory is no UTF-8")?];
            build(&sh, &products, "aarch64", &flags, &own.join(AARCH64), "aarch64-linux-gnu-strip")
        });
        // beside what `cargo build --release` has made or will make, which is nearly all of it
        let x86_64 = build(&Shell::new()?, &products, "x86_64", &[], &products, "strip");
        aarch64.join().map_err(|_| anyhow!("the build for aarch64 panicked"))?.and(x86_64)
    })
}

/// `flags`: cargo's, for a target that is not this machine's own; `built`: where it puts what it builds with them.
fn build(
    sh: &Shell,
    products: &Path,
    architecture: &str,
    flags: &[&str],
    built: &Path,
    strip: &str,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let cargo = ["rustc", "--release", "--locked"];
    cmd!(sh, "cargo {cargo...} {flags...} --package freeboard-preload").run()?;
    // not the library, which is to use the application's own libc
    let program = ["--package", "freeboard-sidecar", "--bin", "freeboard", "--", "-C", "target-feature=+crt-static"];
    cmd!(sh, "cargo {cargo...} {flags...} {program...}").run()?;

    let dist = products.join("dist").join(architecture);
    sh.create_dir(&dist)?;
    for file in ["freeboard", "libfreeboard.so"] {
        let to = dist.join(file);
        cmd!(sh, "{strip} -o {to}").arg(built.join("release").join(file)).run()?;
        println!("{}: {} bytes", to.display(), to.metadata()?.len());
    }
    println!("{architecture}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

impl Toolchain {
    /// For every build until what it returns is dropped.
    fn put_in_force<'sh>(&self, sh: &'sh Shell) -> [PushEnv<'sh>; 3] {
        let of_target = |name: &str| format!("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_{name}");
        let lld = format!("-C link-arg=-fuse-ld=lld -C link-arg=-B{}", self.lld.display());
        [
            sh.push_env("RUSTC", &self.rustc),
            sh.push_env(of_target("LINKER"), self.linker),
            sh.push_env(of_target("RUSTFLAGS"), lld),
        ]
    }

    /// Debian's newest rustc with the standard library for aarch64, unpacked into a directory of its own, where it
    /// stays. It wants a libc that may be newer than this machine's, and runs with its own; what it makes is linked
    /// with this machine's.
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
