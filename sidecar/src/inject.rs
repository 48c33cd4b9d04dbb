//! `freeboard inject` and `freeboard uninject`: a stream of objects from a file to stdout, what was done to stderr. What
//! an object becomes is decided in the crate `freeboard-inject`.

use crate::cli::{Inject, Output, Uninject};
use crate::say;
use anyhow::{Context, Result, bail};
use freeboard_inject::object::{self, LABEL, Name};
use freeboard_inject::report::Report;
use freeboard_inject::stream::{self, Format};
use freeboard_inject::{Mode, Options, pod};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::Path;

/// Injects what is labelled or named. Writes nothing where something that was asked for could not be done, unless that
/// may pass.
///
/// # Errors
/// What the input is not, with its place; a pod that cannot be injected, and why; nothing there to inject.
pub fn inject(flags: &Inject) -> Result<()> {
    let mode = match flags {
        Inject { library_only: true, .. } => Mode::Library,
        Inject { run: true, .. } => Mode::Run,
        _ => Mode::Sidecar,
    };
    let options = Options {
        mode,
        image: flags.image.clone(),
        containers: flags.containers.clone(),
        config_map: flags.config.clone(),
        stdio: flags.stdio,
        without_limit: flags.without_limit,
    };
    let mut there = Vec::new();
    let mut done = Vec::new();
    let (place, out) = edit(&flags.file, flags.output, &mut |object| {
        let name = Name::of(object);
        let is_named = flags.objects.iter().any(|one| one.is(&name));
        let is_asked = is_named || object::is_labelled(object);
        let Some(path) = object::pod_path(object) else {
            return if is_named {
                Err(format!("{name} is of no kind that has a pod; mend: name one that has"))
            } else {
                Ok(())
            };
        };
        if is_asked {
            let missing = || format!("{name}: {} is missing; mend: give it, a pod's template", dotted(path));
            let holder = object.pointer_mut(path).ok_or_else(missing)?;
            let (patched, report) = pod::inject(holder, &options).map_err(|what| in_object(&name, path, &what))?;
            if report.injected.is_empty() && !flags.pass {
                return Err(format!("{name} cannot be injected: {}", report.left_alone()));
            }
            let is_same = *holder == patched;
            *holder = patched;
            done.push(line(&name, &report, is_same));
        }
        there.push(name);
        Ok(())
    })?;
    if let Some(missing) = flags.objects.iter().find(|one| !there.iter().any(|name| one.is(name))) {
        bail!("{place}: no {missing} is there; mend: {}", name_one(&there));
    }
    if done.is_empty() && !flags.pass {
        bail!("{place}: no pod has the label {LABEL}: enabled, and none is named; mend: {}", name_one(&there));
    }
    write(&out, &done)
}

/// Takes out what [`inject`] put in, wherever that is.
///
/// # Errors
/// What the input is not, with its place.
pub fn uninject(flags: &Uninject) -> Result<()> {
    let mut done = Vec::new();
    let (_, out) = edit(&flags.file, flags.output, &mut |object| {
        let name = Name::of(object);
        let Some(path) = object::pod_path(object) else { return Ok(()) };
        if let Some(holder) = object.pointer_mut(path).filter(|pod| pod::is_injected(pod)) {
            *holder = pod::uninject(holder).map_err(|what| in_object(&name, path, &what))?;
            done.push(format!("{name}: taken out"));
        }
        Ok(())
    })?;
    write(&out, &done)
}

/// Reads a file and edits its objects: how the file is called, and what it is then.
fn edit(
    file: &Path,
    output: Option<Output>,
    edit: &mut dyn FnMut(&mut Value) -> Result<(), String>,
) -> Result<(String, String)> {
    let is_stdin = file == Path::new("-");
    let place = if is_stdin { "stdin".into() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let read = if is_stdin { std::io::stdin().read_to_end(&mut bytes) } else { read(file, &mut bytes) };
    read.with_context(|| format!("cannot read {place}"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        anyhow::anyhow!("{place}:{line}: not a text in UTF-8; mend: save it as one")
    })?;
    let format = output.map(|output| match output {
        Output::Yaml => Format::Yaml,
        Output::Json => Format::Json,
    });
    let out = stream::edit(&text, format, edit).map_err(|problem| anyhow::anyhow!("{place}:{problem}"))?;
    Ok((place, out))
}

fn read(file: &Path, bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    std::fs::File::open(file)?.read_to_end(bytes)
}

/// Gives what came out, and says what was done, once it is.
fn write(text: &str, done: &[String]) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")?;
    done.iter().for_each(|line| say(line));
    Ok(())
}

/// What is wrong with a pod, by the path that it has in its object.
fn in_object(name: &Name, path: &str, what: &str) -> String {
    let path = dotted(path);
    if path.is_empty() { format!("{name}: {what}") } else { format!("{name}: {path}.{what}") }
}

fn dotted(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// What became of an object.
fn line(name: &Name, report: &Report, is_same: bool) -> String {
    let mut said = Vec::new();
    if !report.injected.is_empty() {
        let what = if is_same { "has it already" } else { "injected" };
        said.push(format!("{what}: {}", report.injected.join(", ")));
    }
    if !report.skipped.is_empty() {
        said.push(format!("left alone: {}", report.left_alone()));
    }
    format!("{name}: {}", said.join("; "))
}

fn name_one(there: &[Name]) -> String {
    if there.is_empty() {
        return "give it a Pod, or what makes one, such as a Deployment".into();
    }
    let names = there.iter().map(Name::to_string).collect::<Vec<_>>();
    format!("name one of {}", names.join(", "))
}
