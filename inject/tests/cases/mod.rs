//! The cases in `golden/`, for everybody who makes of pods what `inject` does.

use freeboard_inject::{Mode, Options};
use std::fs;
use std::path::{Path, PathBuf};

/// Name and file of each.
pub fn cases() -> Vec<(String, PathBuf)> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = repository.join("inject/tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let cases = files.filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".yaml")?.to_owned();
        (!name.contains('.')).then_some((name, path))
    });
    let mut cases: Vec<_> = cases.collect();
    cases.sort();
    assert!(cases.len() > 30, "the cases are gone");
    cases
}

/// What a case asks for: `# options: library container=app`.
pub fn options(text: &str) -> Options {
    let mut options = Options::default();
    let line = text.lines().next().and_then(|line| line.strip_prefix("# options:")).unwrap_or_default();
    for word in line.split_whitespace() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("library", _) => options.mode = Mode::Library,
            ("run", _) => options.mode = Mode::Run,
            ("stdio", _) => options.stdio = true,
            ("without-limit", _) => options.without_limit = true,
            ("container", name) => options.containers.push(name.into()),
            ("config", name) => options.config_map = Some(name.into()),
            ("image", image) => options.image = image.into(),
            _ => panic!("{word}"),
        }
    }
    options
}
