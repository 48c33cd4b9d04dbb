//! `freeboard inject`, `uninject` and `install` as people run them: what is chosen, what is said, and what is written
//! where something is wrong: nothing.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::*;

const PODS: &str = "# one\napiVersion: v1\nkind: Pod\nmetadata: {name: labelled, labels: {freeboard.dev/inject: enabled}}\n\
                    spec: {containers: [{name: app, image: i, resources: {limits: {memory: 1Gi}}}, {name: b, image: i}]}\n\
                    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: other}   # other\nspec: {containers: [{name: app, image: i}]}\n";

/// `freeboard` with arguments and something on stdin.
fn piped(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(FREEBOARD)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_labelled_or_named_is_injected() {
    let labelled = piped(&["inject"], PODS.as_bytes());
    let want = "freeboard: Pod/labelled: injected: app; left alone: b (no-memory-limit; mend: set \
                resources.limits.memory, or ask with --without-limit)\n";
    assert_eq!(stderr(&labelled), want);
    let out = stdout(&labelled);
    let (first, second) = out.split_once("---\n").unwrap();
    assert!(first.starts_with("# one\napiVersion: v1\n") && first.contains("libfreeboard.so"), "{first}");
    assert_eq!(second, PODS.split_once("---\n").unwrap().1, "what is not chosen stays byte by byte");

    let again = piped(&["inject"], out.as_bytes());
    assert_eq!(stdout(&again), out);
    assert!(stderr(&again).contains("Pod/labelled: has it already: app"), "{}", stderr(&again));

    let named = piped(&["inject", "--without-limit", "-", "pod/other"], PODS.as_bytes());
    assert!(stderr(&named).contains("Pod/other: injected: app\n"), "{}", stderr(&named));

    let out = stdout(&piped(&["uninject", "-o", "json"], &named.stdout));
    let plain = piped(&["inject", "-o", "json", "--pass", "--container", "nobody"], PODS.as_bytes());
    assert_eq!(out, stdout(&plain));
}

#[test]
fn what_is_wrong_is_said_in_one_line_and_nothing_is_written() {
    let cases: [(&[&str], &[u8], &str); 11] = [
        (&["inject"], b"", "stdin: no pod has the label"),
        (
            &["inject", "-", "pod/oter"],
            PODS.as_bytes(),
            "stdin: no pod/oter is there; mend: name one of Pod/labelled, Pod/other",
        ),
        (
            &["inject", "-", "pod/other"],
            PODS.as_bytes(),
            "stdin:7:1: Pod/other cannot be injected: app (no-memory-limit; mend: ",
        ),
        (&["inject"], b"a: b: c", "stdin:1:5: not YAML: "),
        (&["inject"], b"a: 1\nb: \xff", "stdin:2: not a text in UTF-8; mend: "),
        (&["inject", "/no/such/file"], b"", "cannot read /no/such/file: "),
        (&["inject", "--image", "No"], b"", "\"No\" is no name in an image; mend: "),
        (&["inject", "--config", "a.toml/"], b"", "no name of a ConfigMap; mend: "),
        (&["inject", "-", "other"], b"", "no object; mend: write KIND/NAME"),
        (
            &["inject", "-", "Thing/some"],
            b"kind: Thing\nmetadata: {name: some}",
            "stdin:1:1: Thing/some is of no kind that has a pod; mend: ",
        ),
        (
            &["inject", "-", "job/some"],
            b"apiVersion: batch/v1\nkind: Job\nmetadata: {name: some}\nspec: {template: {spec: {containers: 1}}}",
            "stdin:1:1: Job/some: spec.template.spec.containers is not a list; mend: make it one",
        ),
    ];
    for (arguments, input, want) in cases {
        let output = piped(arguments, input);
        let said = stderr(&output);
        assert!(said.contains(want), "{arguments:?}: {said}");
        // what the parser of the command line says has a line on help behind it
        assert_eq!(said.lines().next().map(|line| line.contains(want)), Some(true), "{said}");
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""), "{arguments:?}");
    }
    let passed = piped(&["inject", "--pass", "-", "pod/other"], PODS.as_bytes());
    assert!(
        stdout(&passed).contains("# other") && stderr(&passed).contains("Pod/other: left alone: app (no-memory-limit")
    );
}

/// What an init container and a wrapped command do in a pod.
#[test]
fn what_is_installed_runs_a_command_with_its_region_where_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [lib, region] = [path("lib"), path("region")];
    [&lib, &region].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let install = freeboard(["install", lib.to_str().unwrap()]).output().unwrap();
    assert!(install.status.success(), "{}", stderr(&install));
    let wrapped = |region: &Path| {
        let mut command = Command::new(lib.join("freeboard"));
        let region = format!("--region={}", region.display());
        // nowhere else to write, as with a read-only root
        command.args(["run", "--quiet", &region, "--", "sh", "-c", "echo $LD_PRELOAD $FREEBOARD_REGION"]);
        command.env("TMPDIR", "/proc").env_remove("FREEBOARD_LIB").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let output = wrapped(&region);
    let want = format!("{} {}/freeboard-", lib.join("libfreeboard.so").display(), region.display());
    assert!(stdout(&output).starts_with(&want), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(fs::read_dir(&region).unwrap().count(), 0, "something is left");
    let gone = wrapped(&path("gone"));
    let want = format!("freeboard: --region: {}: there is no such directory; mend: make it\n", path("gone").display());
    assert_eq!((stderr(&gone), stdout(&gone).as_str()), (want, ""));
}
