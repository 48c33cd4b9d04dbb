//! Each case in `golden/`: `CASE.yaml`, what `inject` makes of it, `CASE.injected.yaml`, and what it says,
//! `CASE.report`. The first line of a case names its options. `GOLDEN=write cargo test -p freeboard-inject` writes what
//! is there now: read the difference.

mod cases;

use cases::{cases, options};
use freeboard_inject::stream::edit;
use freeboard_inject::{Mode, Options, Report, object, pod};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn injected(text: &str, options: &Options) -> (String, Vec<Report>) {
    let mut reports = Vec::new();
    let out = edit(text, None, &mut |object| {
        if let Some(path) = object::pod_path(object) {
            let place = object.pointer_mut(path).expect(path);
            let (patched, report) = pod::inject(place, options)?;
            *place = patched;
            reports.push(report);
        }
        Ok(())
    });
    (out.expect("a good case"), reports)
}

fn uninjected(text: &str) -> String {
    let out = edit(text, None, &mut |object| {
        if let Some(place) = object::pod_path(object).and_then(|path| object.pointer_mut(path)) {
            *place = pod::uninject(place)?;
        }
        Ok(())
    });
    out.expect("a good case")
}

fn values(text: &str) -> Vec<Value> {
    let mut values = Vec::new();
    edit(text, None, &mut |object| {
        values.push(object.clone());
        Ok(())
    })
    .unwrap();
    values
}

fn compare(path: &Path, is: &str) {
    if std::env::var_os("GOLDEN").is_some() {
        fs::write(path, is).unwrap();
    }
    assert_eq!(is, fs::read_to_string(path).unwrap_or_default(), "{}", path.display());
}

#[test]
fn each_case_is_as_it_was() {
    for (name, path) in cases() {
        let text = fs::read_to_string(&path).unwrap();
        let options = options(&text);
        let (out, reports) = injected(&text, &options);
        compare(&path.with_file_name(format!("{name}.injected.yaml")), &out);
        let said: String = reports.iter().map(|report| serde_json::to_string(report).unwrap() + "\n").collect();
        compare(&path.with_file_name(format!("{name}.report")), &said);
        assert_eq!(injected(&out, &options).0, out, "{name}: the second pass differs");
        assert_eq!(values(&uninjected(&out)), values(&text), "{name}: uninject is not the inverse");
    }
}

#[test]
fn other_options_replace_what_was_injected() {
    for (name, path) in cases() {
        let text = fs::read_to_string(&path).unwrap();
        let (first, second) = (options(&text), Options { mode: Mode::Library, ..options(&text) });
        let once = values(&injected(&text, &second).0);
        assert_eq!(values(&injected(&injected(&text, &first).0, &second).0), once, "{name}");
    }
}

/// What people write by hand is what `inject` yields for the same application.
#[test]
fn the_pod_to_adapt_is_what_inject_yields() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let by_hand = values(&fs::read_to_string(repository.join("deploy/pod.yaml")).unwrap()).remove(0);
    let mut marked = by_hand.clone();
    marked["metadata"]["annotations"] = serde_json::json!({pod::STATUS: ""});
    let bare = pod::uninject(&marked).unwrap();
    assert_eq!(bare["spec"]["initContainers"], Value::Null);
    let (mut yielded, _) = pod::inject(&bare, &Options { stdio: true, ..Options::default() }).unwrap();
    yielded["metadata"].as_object_mut().unwrap().remove("annotations");
    assert_eq!(yielded, by_hand);
}
