//! Path patterns: what can be one, and when one leaves nothing for another.

use freeboard_budget::glob;
use freeboard_budget::layout::PATTERN_BYTES;

use crate::error::{Fault, quoted};

/// Checks that some file could match the pattern. `key` is its name in the file.
///
/// # Errors
/// Empty, relative, longer than the region's rows, or something that the absolute, resolved path of a file never is.
pub(crate) fn check(key: &str, text: &str) -> Result<(), Fault> {
    let subject = format!("{key} {}", quoted(text));
    if text.is_empty() {
        return Err(Fault::new(format!("{key} is empty"), "write an absolute path, as \"/data/**\""));
    }
    if text.len() > PATTERN_BYTES {
        let what = format!("{key} is {} bytes long, and at most {PATTERN_BYTES} fit", text.len());
        return Err(Fault::new(what, "shorten it with * or **"));
    }
    if text.contains('\0') {
        return Err(Fault::new(format!("{subject} holds a NUL, which no path does"), "remove it"));
    }
    if !text.starts_with('/') {
        let from_root = text.strip_prefix("./").unwrap_or(text);
        let mend = if from_root.starts_with(['~', '.', '$']) {
            "write it from the root, as \"/data/**\"".to_owned()
        } else if from_root.contains(['/', '*']) {
            format!("write it from the root: {}", quoted(&format!("/{from_root}")))
        } else {
            format!("write it from the root, or {} for any of that name", quoted(&format!("/**/{from_root}")))
        };
        return Err(Fault::new(format!("{subject} is relative"), mend));
    }
    if let Some(special) = text.chars().find(|c| "[]{}\\".contains(*c)) {
        return Err(Fault::new(
            format!("{subject} holds {special:?}, which is not special here: only ?, * and ** are"),
            "write one pattern for each case, or ? where the path really holds this character",
        ));
    }
    if let Some(directory) = text.strip_suffix('/') {
        let what = format!("{subject} ends in a slash, which no path of a file does");
        return Err(Fault::new(what, format!("write {} for all below it", quoted(&format!("{directory}/**")))));
    }
    if text.split('/').skip(1).any(|component| matches!(component, "" | "." | "..")) {
        let what = format!("{subject} is not a resolved path, so it can match none");
        return Err(Fault::new(what, "write it without \"//\", \"/./\" and \"/../\""));
    }
    Ok(())
}

/// Checks that a pattern of files to sweep names a directory to begin in: all below `/` would be the machine's own
/// files.
///
/// # Errors
/// It begins with a wildcard, or lies in the root itself.
pub(crate) fn check_directory(key: &str, text: &str) -> Result<(), Fault> {
    let fixed = text.find(['*', '?']).map_or(text, |wildcard| &text[..wildcard]);
    match fixed.rfind('/') {
        Some(1..) => Ok(()),
        _ => Err(Fault::new(
            format!("{key} {} names no directory", quoted(text)),
            "begin with the volume's directory, as \"/logs/**\"",
        )),
    }
}

/// Does `earlier` match everything that `later` does? Both passed [`check`]. "No" can be wrong for patterns with
/// several wildcards; "yes" is never wrong, because it makes a file invalid.
pub(crate) fn covers(earlier: &str, later: &str) -> bool {
    const WILDCARDS: [char; 2] = ['*', '?'];
    if earlier == later {
        return true;
    }
    if let Some(directory) = earlier.strip_suffix("/**").filter(|directory| !directory.contains(WILDCARDS)) {
        return later.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    }
    // A NUL stands for whatever a wildcard of `later` matches: only a `*` or `**` of `earlier` takes it, and that takes
    // anything else within a component too. Not so a `?`, which takes one byte; nor does a NUL stand for a `**`.
    let uncertain = later.contains("**") || (later.contains(WILDCARDS) && earlier.contains('?'));
    !uncertain && glob::matches(earlier.as_bytes(), later.replace(WILDCARDS, "\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering() {
        let cases = [
            ("/data/**", "/data/**", true),
            ("/**", "/data/*.log", true),
            ("/data/**", "/data", true),
            ("/data/**", "/data/a/**", true),
            ("/data/**", "/data/*/?", true),
            ("/data/**", "/data*/a", false),
            ("/data/**", "/database/**", false),
            ("/data/*", "/data/*.log", true),
            ("/data/*", "/data/a", true),
            ("/data/*", "/data/?", true),
            ("/data/*", "/data/*/b", false),
            ("/data/*", "/data/**", false),
            ("/data/?", "/data/*", false),
            ("/data/?", "/data/a", true),
            ("/data/*.log", "/data/*", false),
            ("/data/**/*.log", "/data/a/*.log", true),
            ("/data/a", "/data/*", false),
        ];
        for (earlier, later, want) in cases {
            assert_eq!(covers(earlier, later), want, "{earlier} before {later}");
        }
    }

    /// Every path of one to `depth` of these components.
    fn paths(components: &[&str], depth: usize) -> Vec<String> {
        let mut level = vec![String::new()];
        let mut all = Vec::new();
        for _ in 0..depth {
            level = level.iter().flat_map(|path| components.iter().map(move |part| format!("{path}/{part}"))).collect();
            all.extend(level.iter().cloned());
        }
        all
    }

    #[test]
    fn nothing_is_left_for_a_covered_pattern() {
        let patterns = paths(&["a", "*", "?", "a*", "**"], 3);
        let files = paths(&["a", "b", "ab"], 4);
        let mut covered = 0;
        for (earlier, later) in patterns.iter().flat_map(|earlier| patterns.iter().map(move |later| (earlier, later))) {
            if !covers(earlier, later) {
                continue;
            }
            covered += 1;
            for file in files.iter().filter(|file| glob::matches(later.as_bytes(), file.as_bytes())) {
                assert!(glob::matches(earlier.as_bytes(), file.as_bytes()), "{earlier} before {later}: {file}");
            }
        }
        assert!(covered > 2 * patterns.len(), "{covered} pairs say too little");
    }
}
