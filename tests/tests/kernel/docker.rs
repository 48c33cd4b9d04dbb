//! The image and the recipes of `deploy/`, in a real engine: a container that is killed while it writes to a slow disk
//! finishes with the library, below its limit. 300 MiB at 30 MiB/s, limit 200 MiB.

use anyhow::Context;
use freeboard_tests::cgroup::groups_named;
use freeboard_tests::docker::{Engine, succeed};
use freeboard_tests::lab::{self, Lab, path_str, run};
use freeboard_tests::podman::Podman;
use freeboard_tests::slow_disk::{Filesystem, SlowDisk};
use freeboard_tests::{MB, MIB, freeboard, programs, truth};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Of `docker run --memory 200m` and of `docker-compose.yml`.
const LIMIT: u64 = 200 * MIB;
/// What the library keeps usage under: 80 % of the limit, and what the kernel's counters lag behind.
const TARGET: u64 = LIMIT / 10 * 8 + 4 * MIB;
const DATA: u64 = 300 * MIB;
const DISK: u64 = 30 * MIB;
/// Time for starting containers and for hearing of their end, at most.
const START_S: f64 = 5.0;

const BASE: &str = "debian:bookworm-slim";
const DEMO: &str = "freeboard-demo";
/// The newest Kubernetes whose schema the validator has.
const NEWEST: &str = "1.37";
/// What the README says that the demonstration needs of `--privileged`. All of it this engine can only give where the
/// machine has every capability that its kernel knows.
const RIGHTS: [&str; 6] =
    ["--cap-add", "SYS_ADMIN", "--device-cgroup-rule", "b 7:* rw", "--device-cgroup-rule", "c 10:237 rw"];
/// Where the kernel says, inside a container, how often usage met the limit, and its peak.
const FIGURES: &str = "/sys/fs/cgroup/memory/memory.failcnt /sys/fs/cgroup/memory/memory.max_usage_in_bytes";

#[test]
fn containers() {
    let test = "containers";
    let Some(lab) = Lab::alone(test) else { return };
    let disk = SlowDisk::new(&lab, Filesystem::Xfs, DISK);
    disk.full_speed();
    let engine = match Engine::start(&lab, disk.dir()) {
        Ok(engine) => engine,
        Err(error) => return lab::skip(test, &format!("{error:#}")),
    };
    let begin = Instant::now();
    engine.build(&repository(), &["--tag", "freeboard"]).expect("the image does not build");
    println!("{test}: docker build took {:.0} s", begin.elapsed().as_secs_f64());
    engine
        .build(&repository(), &["--target", "demo", "--tag", DEMO])
        .expect("the demonstration's image does not build");
    println!("{test}: with the demonstration {:.0} s", begin.elapsed().as_secs_f64());

    let case = Case { data: disk.dir().join("data"), source: programs::random_file(&lab, DATA), engine, disk };
    fs::create_dir(&case.data).and_then(|()| fs::set_permissions(&case.data, Permissions::from_mode(0o777))).unwrap();
    case.the_image(&lab);
    case.library_alone(&lab);
    case.app_and_sidecar(&lab);
    case.a_pod_in_podman(&lab);
    case.the_demo(&lab);
}

/// What the cases share: the engine with the built image, and the slow disk that it lives on too.
struct Case<'lab> {
    // goes first, for it lives on the disk
    engine: Engine,
    disk: SlowDisk<'lab>,
    /// A directory on the disk.
    data: PathBuf,
    source: PathBuf,
}

/// What became of the writer in a container.
#[derive(Debug)]
struct Outcome {
    wall_s: f64,
    limit_hits: u64,
    peak_usage_bytes: u64,
}

impl Case<'_> {
    /// Small, not root, nothing but the program and the library, and they work together.
    fn the_image(&self, lab: &Lab) {
        let inspect = |format: &str| self.docker(&["inspect", "--format", format, "freeboard"]);
        assert_eq!(inspect("{{.Config.User}} {{.Config.Entrypoint}}"), "65532:65532 [freeboard]");
        let bytes: u64 = inspect("{{.Size}}").parse().expect("a size is a number");
        println!("the image: {bytes} bytes");
        assert!(bytes < 4 * MIB, "the image has {bytes} bytes");
        let container = self.docker(&["create", "freeboard"]);
        let (files, dir) = (lab.dir().join("image.tar"), lab.dir().join("image"));
        self.docker(&["export", "--output", &path_str(&files), &container]);
        self.docker(&["rm", &container]);
        fs::create_dir(&dir).expect("cannot make a directory");
        run("tar", &["--extract", "--file", &path_str(&files), "--directory", &path_str(&dir)]);
        // what is empty is the engine's
        let held = run("find", &[&path_str(&dir), "-type", "f", "-size", "+0", "-printf", "%P %m %T@\n"]);
        let mut held: Vec<_> = held.lines().collect();
        held.sort_unstable();
        let expected = ["usr/local/bin/freeboard 755 0.0000000000", "usr/local/lib/libfreeboard.so 755 0.0000000000"];
        assert_eq!(held, expected);
        let run = ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "freeboard"];
        let said = self.docker(&[&run[..], &["run", "--quiet", "--", "freeboard", "--version"]].concat());
        assert_eq!(said, concat!("freeboard ", env!("CARGO_PKG_VERSION")));
        let alone = self.engine.docker().args(run).args(["ready", "/run/freeboard/socket"]).output();
        let alone = alone.expect("cannot start docker");
        assert_eq!(alone.status.code(), Some(2), "ready, where there is no sidecar");
    }

    /// `docker run` with nothing but the library, to a volume on the disk and to the container's own root.
    fn library_alone(&self, lab: &Lab) {
        let container = self.docker(&["create", "freeboard"]);
        let library = lab.dir().join("libfreeboard.so");
        self.docker(&["cp", &format!("{container}:/usr/local/lib/libfreeboard.so"), &path_str(&library)]);
        self.docker(&["rm", &container]);

        self.disk.slow_down();
        let data = format!("{}:/data", self.data.display());
        let (killed, _) = self.run("plain", &["--volume", &data], &write("/data/output"));
        assert_eq!(killed, 137, "a plain writer was not killed: this shows nothing");
        self.disk.write_out();

        let library = format!("{}:/libfreeboard.so:ro", library.display());
        let preload = ["--volume", &library, "--env", "LD_PRELOAD=/libfreeboard.so"];
        let on_volume = [&preload[..], &["--volume", &data]].concat();
        self.run_paced("a volume", &on_volume, "/data/output").assert_at_home("a volume");
        truth::assert_same(&self.data.join("output"), &self.source);
        self.disk.write_out();

        self.run_paced("the container's root", &preload, "/output").assert_at_home("the container's root");
        self.disk.full_speed();
    }

    /// `deploy/docker-compose.yml`, with another command for the application, as restricted as in `deploy/pod.yaml`.
    fn app_and_sidecar(&self, lab: &Lab) {
        let own = format!(
            "services:\n  app:\n    command: [sh, -c, '{}']\n    network_mode: none\n    user: '65532:65532'\n    \
             read_only: true\n    cap_drop: [ALL]\n    volumes: ['{}:/source:ro', '{}:/data']\n",
            write_and_tell("/data/output"),
            self.source.display(),
            self.data.display()
        );
        let file = lab.dir().join("docker-compose.override.yml");
        fs::write(&file, own).expect("cannot write the override");
        let compose = |arguments: &[&str]| {
            let mut compose = self.engine.compose();
            compose.args(["--project-name", "freeboard", "--file"]).arg(deploy("docker-compose.yml"));
            succeed(compose.arg("--file").arg(&file).args(arguments)).unwrap_or_else(|error| panic!("{error:#}"))
        };
        fs::remove_file(self.data.join("output")).expect("cannot remove the output");
        self.disk.slow_down();
        let begin = Instant::now();
        compose(&["up", "--detach", "--no-build"]);
        let (app, sidecar) = (compose(&["ps", "--quiet", "app"]), compose(&["ps", "--quiet", "freeboard"]));
        let deadline = begin + Duration::from_secs(15);
        let serves = || self.engine.processes(&app).into_iter().any(has_mapped_a_region);
        let mut is_served = serves();
        while !is_served && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            is_served = serves();
        }
        let code = self.docker(&["wait", &app]);
        let log = self.docker(&["logs", &app]);
        let outcome = Outcome::read(&log, begin);
        println!("app and sidecar: {outcome:?}");
        let said = self.docker(&["logs", &sidecar]);
        compose(&["stop", "freeboard"]);
        let ended = self.docker(&["inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", &sidecar]);
        self.disk.full_speed();
        compose(&["down", "--volumes"]);

        assert_eq!(code, "0", "{log}");
        assert!(is_served, "the writer had not found its sidecar, which said: {said}");
        outcome.assert_at_home("app and sidecar");
        truth::assert_same(&self.data.join("output"), &self.source);
        assert_eq!(ended, "0 false", "the sidecar did not end as it should: {said}");
    }

    /// A pod in Podman, as it is written and as `freeboard inject` writes it. (This Podman knows no native sidecars.)
    fn a_pod_in_podman(&self, lab: &Lab) {
        let podman = Podman::start(lab).unwrap_or_else(|error| panic!("{error:#}"));
        let ask =
            |arguments: &[&str]| succeed(podman.podman().args(arguments)).unwrap_or_else(|error| panic!("{error:#}"));
        let images = path_str(&lab.dir().join("images.tar"));
        self.docker(&["save", "--output", &images, BASE, "freeboard"]);
        ask(&["load", "--quiet", "--input", &images]);
        let file = |name: &str, pod: &str| {
            let file = lab.dir().join(name).with_extension("yaml");
            fs::write(&file, pod).expect("cannot write the pod");
            path_str(&file)
        };
        let plain = file("plain", &self.pod("plain"));
        let mut inject = Command::new(freeboard::program());
        inject.args(["inject", "--library-only", &file("writer", &self.pod("writer")), "Pod/writer"]);
        let injected = file("injected", &succeed(&mut inject).expect("cannot inject"));

        self.disk.slow_down();
        let play = |name: &str, pod: &str| {
            let (app, begin) = (format!("{name}-app"), Instant::now());
            ask(&["play", "kube", "--network", "host", pod]);
            let code = ask(&["wait", &app]);
            let (log, wall_s) = (ask(&["logs", &app]), begin.elapsed().as_secs_f64());
            self.disk.write_out();
            (code, log, wall_s)
        };
        let (code, log, _) = play("plain", &plain);
        assert_eq!(code, "137", "a plain writer was not killed, this shows nothing: {log}");
        let (code, log, wall_s) = play("writer", &injected);
        self.disk.full_speed();
        assert_eq!(code, "0", "{log}");
        let outcome = Outcome { wall_s, ..Outcome::read(&log, Instant::now()) };
        println!("a pod in Podman: {outcome:?}");
        outcome.assert_at_home("a pod in Podman");
        truth::assert_same(&self.data.join("output"), &self.source);
    }

    /// A pod that writes the source to the disk.
    fn pod(&self, name: &str) -> String {
        let (source, data) = (self.source.display(), self.data.display());
        let script = write_and_tell("/data/output");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
             - name: app\n    image: {BASE}\n    command: [/bin/sh, -c, '{script}']\n    \
             resources: {{limits: {{memory: 200Mi}}}}\n    volumeMounts:\n    \
             - {{name: source, mountPath: /source}}\n    - {{name: data, mountPath: /data}}\n  volumes:\n  \
             - {{name: source, hostPath: {{path: {source}, type: File}}}}\n  \
             - {{name: data, hostPath: {{path: {data}, type: Directory}}}}\n"
        )
    }

    /// The demonstration, as the README starts it, and without the rights that it asks for there.
    fn the_demo(mut self, lab: &Lab) {
        // the slow disk is the container's own
        self.engine = self.engine.restart(lab, self.disk.dir()).expect("the engine does not start again");
        let run = format!("{} --yes", readme_line(DEMO).replace(" --interactive --tty", ""));
        let words = run.split(' ').map(|word| if word == "--privileged" { RIGHTS.to_vec() } else { vec![word] });
        let run = words.collect::<Vec<_>>().concat();
        let before = made_by_labs();
        let shown = self.docker(&run);
        println!("{shown}");
        assert_eq!(made_by_labs(), before, "something is left");
        assert!(shown.contains("qemu-img convert: killed, out of memory"), "the plain one was not killed");
        let [plain, under] = figures(&shown, "times at the limit");
        assert!(plain > 0.0 && under == 0.0, "times at the limit: {plain} and {under}");
        let [_, peak] = figures(&shown, "most memory used, of 200 MB");
        assert!(peak * 1e6 <= (160 * MB + 4 * MIB) as f64, "most memory used: {peak} MB");
        let [_, seconds] = figures(&shown, "time ");
        assert!((17.0..21.0).contains(&seconds), "the disk of 31.5 MB/s took {seconds} s for 600 MB");
        assert!(shown.contains("identical byte for byte"));

        let container = self.docker(&[&["run", "--detach"], &run[1..]].concat());
        let begin = Instant::now();
        while made_by_labs() == before {
            assert!(begin.elapsed() < Duration::from_secs(30), "it makes nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.docker(&["stop", &container]);
        assert_eq!(made_by_labs(), before, "something is left of a demonstration that was stopped");

        // the disk is full of what the builds left
        self.docker(&["rmi", "rust:1-bookworm"]);
        self.docker(&["image", "prune", "--force"]);
        // as engines of 2024 and later do, let it ask cachestat
        let shown = self.docker(&["run", "--rm", "--security-opt", "seccomp=unconfined", DEMO, "--yes"]);
        println!("{shown}");
        assert!(shown.contains("cannot be shown here") && shown.contains("identical byte for byte"));
        let [peak] = figures(&shown, "most unwritten at a time");
        assert!((1.0..=18.0).contains(&peak), "with a window of 16 MiB {peak} MB were unwritten");
        assert_eq!(self.docker(&["volume", "ls", "--quiet"]), "", "a volume is left");
    }

    fn docker(&self, arguments: &[&str]) -> String {
        succeed(self.engine.docker().args(arguments)).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// `docker run` under the limit, with the source; the exit code and what came to stdout.
    fn run(&self, name: &str, options: &[&str], script: &str) -> (i32, String) {
        let source = format!("{}:/source:ro", self.source.display());
        let mut command = self.engine.docker();
        command.args(["run", "--rm", "--network", "none", "--memory", "200m", "--volume", &source]).args(options);
        let output = command.args([BASE, "sh", "-c", script]).output().expect("cannot start docker");
        let code = output.status.code().expect("docker was killed");
        println!("{name}: exit {code}");
        (code, format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    fn run_paced(&self, name: &str, options: &[&str], output: &str) -> Outcome {
        let begin = Instant::now();
        let (code, said) = self.run(name, options, &write_and_tell(output));
        assert_eq!(code, 0, "{name}: {said}");
        let outcome = Outcome::read(&said, begin);
        println!("{name}: {outcome:?}");
        outcome
    }
}

impl Outcome {
    fn read(said: &str, begin: Instant) -> Outcome {
        let figures: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
        let [limit_hits, peak_usage_bytes] = figures[..] else { panic!("no figures in: {said}") };
        Outcome { wall_s: begin.elapsed().as_secs_f64(), limit_hits, peak_usage_bytes }
    }

    fn assert_at_home(&self, what: &str) {
        assert_eq!(self.limit_hits, 0, "{what}: limit hits");
        let ideal_s = DATA as f64 / DISK as f64;
        let usual_s = 0.7 * ideal_s..1.1 * ideal_s + START_S;
        assert!(usual_s.contains(&self.wall_s), "{what}: took {:.1} s, the disk {ideal_s:.1} s", self.wall_s);
        let peak = self.peak_usage_bytes;
        assert!(peak <= TARGET, "{what}: peak usage {} MiB is over {} MiB", peak / MIB, TARGET / MIB);
    }
}

#[test]
fn the_pod_is_one_that_kubernetes_takes() {
    let test = "the pod's schema";
    let validator = match validator() {
        Ok(validator) => validator,
        Err(error) => return lab::skip(test, &format!("{error:#}")),
    };
    let validate = |version: &str, file: &Path| {
        succeed(Command::new(&validator).args(["--strict", "--kubernetes-version", version]).arg(file))
    };
    // the first with native sidecars, and a late one
    for version in ["1.29", NEWEST] {
        validate(version, &deploy("pod.yaml")).unwrap_or_else(|error| panic!("{version}: {error:#}"));
    }
    let misspelt = fs::read_to_string(deploy("pod.yaml")).unwrap().replace("startupProbe:", "startProbe:");
    let file = freeboard::target_dir().join("misspelt-pod.yaml");
    fs::write(&file, misspelt).unwrap();
    assert!(validate("1.29", &file).is_err(), "the validator took a misspelt pod: it shows nothing");
}

/// What `freeboard inject` makes of all kinds of pods, as its golden files have it.
#[test]
fn injected_pods_are_ones_that_kubernetes_takes() {
    let test = "the injected pods' schema";
    let validator = match validator() {
        Ok(validator) => validator,
        Err(error) => return lab::skip(test, &format!("{error:#}")),
    };
    let folder = repository().join("inject/tests/golden");
    let is_injected = |path: &PathBuf| path_str(path).ends_with(".injected.yaml");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(is_injected).collect();
    let has = |path: &Path, text: &str| fs::read_to_string(path).unwrap().contains(text);
    // without native sidecars, the first with them, one where a pod may have resources of its own, the newest
    for version in ["1.27", "1.29", "1.33", NEWEST] {
        let is_known = |path: &&PathBuf| match version {
            "1.27" => has(path, "\"mode\":\"library\"") || has(path, "\"mode\":\"run\""),
            "1.29" => !has(path, "\n  resources:"),
            _ => true,
        };
        let known: Vec<_> = files.iter().filter(is_known).collect();
        assert!(known.len() > 1, "{version}: the golden files are gone");
        let mut command = Command::new(&validator);
        command.args(["--strict", "--kubernetes-version", version]).args(known);
        succeed(&mut command).unwrap_or_else(|error| panic!("{version}: {error:#}"));
    }
}

/// The shell command that writes the source to a path.
fn write(path: &str) -> String {
    format!("dd if=/source of={path} bs=1M status=none")
}

/// The same, and then what the kernel counted for the container.
fn write_and_tell(path: &str) -> String {
    format!("{} && cat {FIGURES}", write(path))
}

/// The line of the README that runs an image, without `docker`.
fn readme_line(image: &str) -> String {
    let readme = fs::read_to_string(repository().join("README.md")).expect("no README");
    let mut commands = readme.lines().filter_map(|line| line.trim().strip_prefix("docker "));
    let line = commands.find(|line| line.starts_with("run ") && line.ends_with(image));
    line.unwrap_or_else(|| panic!("the README does not run {image}")).to_owned()
}

/// The numbers in a row of a table.
fn figures<const N: usize>(table: &str, row: &str) -> [f64; N] {
    let cells = table.lines().find_map(|line| line.strip_prefix(row)).expect(row);
    let numbers: Vec<_> = cells.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("not {N} numbers: {row}{cells}"))
}

/// Loop devices and memory groups of labs, those in containers too, but for an engine's group.
fn made_by_labs() -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").expect("no /sys/block").map(|entry| entry.unwrap().path());
    let file = |device: &PathBuf| fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    let groups = groups_named("freeboard-tests-").into_iter().filter(|group| !path_str(group).ends_with("engine"));
    devices.filter(|device| file(device).contains("freeboard-tests-")).chain(groups).collect()
}

/// Whether a process has mapped a region as a sidecar hands it over.
fn has_mapped_a_region(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().contains("/memfd:")
}

/// The program that knows the schema of Kubernetes, installed beside the build's products: once, whoever asks first.
fn validator() -> anyhow::Result<PathBuf> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap();
    let environment = freeboard::target_dir().join("kubernetes-validate");
    let program = environment.join("bin/kubernetes-validate");
    if !program.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        let mut pip = Command::new(environment.join("bin/pip"));
        succeed(pip.args(["install", "--quiet", "kubernetes-validate"])).context("cannot install the validator")?;
    }
    Ok(program)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a member").to_owned()
}

fn deploy(file: &str) -> PathBuf {
    repository().join("deploy").join(file)
}
