//! A path into LD_PRELOAD, and out again. Loaders take both spaces and colons between paths, and nothing where a path
//! would be (ld.so(8)).

const SEPARATORS: [char; 2] = [':', ' '];

/// The path first, and what was there behind it, in the separator that was used there.
pub fn merge(path: &str, existing: &str) -> String {
    let separator = if existing.contains(' ') && !existing.contains(':') { ' ' } else { ':' };
    format!("{path}{separator}{existing}")
}

/// What is left without the path. `None`: nothing else was ever there.
pub fn take_out(path: &str, value: &str) -> Option<String> {
    if value == path {
        return None;
    }
    let mut start = 0;
    for part in value.split(SEPARATORS) {
        let end = start + part.len();
        if part == path {
            // with the separator behind it, or the one before where it is the last
            let rest = value.get(end + 1..);
            let before = &value[..start];
            let before = if rest.is_none() { before.trim_end_matches(SEPARATORS) } else { before };
            return Some(format!("{before}{}", rest.unwrap_or_default()));
        }
        start = end + 1;
    }
    Some(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let cases = [
            ("", "/l:"),
            ("/a.so", "/l:/a.so"),
            ("/a.so:/b.so", "/l:/a.so:/b.so"),
            ("/a.so /b.so", "/l /a.so /b.so"),
            ("/a.so /b.so:/c.so", "/l:/a.so /b.so:/c.so"),
            (" ", "/l  "),
            ("/lib.so", "/l:/lib.so"),
        ];
        for (existing, merged) in cases {
            assert_eq!(merge("/l", existing), merged);
            assert_eq!(take_out("/l", merged).as_deref(), Some(existing), "{merged}");
        }
        assert_eq!(take_out("/l", "/l"), None);
    }

    #[test]
    fn it_comes_out_from_wherever_it_was_moved_to() {
        for (value, left) in [("/a.so:/l", "/a.so"), ("/a.so:/l:/b.so", "/a.so:/b.so"), ("/lib.so", "/lib.so")] {
            assert_eq!(take_out("/l", value).as_deref(), Some(left));
        }
    }
}
