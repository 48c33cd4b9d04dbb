//! Path patterns of the workload file: `?` and `*` match within one component, `**` matches across components, and a
//! pattern that ends in `/**` also matches the directory itself. Everything else stands for itself.
//!
//! Ours because it runs inside applications: no allocation, no recursion, no panic.

/// Does `pattern` match the whole of `path`? Both are bytes of absolute paths. Takes at most
/// `pattern.len() * path.len()` steps.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut p, mut s) = (0, 0);
    // where to go on when a later byte does not match: after the last `*` and after the last `**`
    let mut star: Option<(usize, usize)> = None;
    let mut globstar: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p).copied(), path.get(s).copied()) {
            (None, None) => return true,
            (Some(b'/'), None) if pattern.get(p..) == Some(b"/**") => return true,
            (Some(b'*'), _) if pattern.get(p + 1) == Some(&b'*') => {
                p += 2;
                // `a/**/b` also matches `a/b`: the slash behind `**` may match nothing
                if pattern.get(p) == Some(&b'/') && s > 0 && path.get(s - 1) == Some(&b'/') {
                    p += 1;
                }
                globstar = Some((p, s));
                star = None;
                continue;
            }
            (Some(b'*'), _) => {
                p += 1;
                star = Some((p, s));
                continue;
            }
            (Some(b'?'), Some(byte)) if byte != b'/' => {
                p += 1;
                s += 1;
                continue;
            }
            (Some(wanted), Some(byte)) if wanted == byte => {
                p += 1;
                s += 1;
                continue;
            }
            _ => {}
        }
        if let Some((after, at)) = star
            && path.get(at).is_some_and(|&byte| byte != b'/')
        {
            star = Some((after, at + 1));
            (p, s) = (after, at + 1);
        } else if let Some((after, at)) = globstar
            && at < path.len()
        {
            // behind `**/` only the start of a component counts
            let mut next = at + 1;
            if after > 0 && pattern.get(after - 1) == Some(&b'/') {
                while next < path.len() && path.get(next - 1) != Some(&b'/') {
                    next += 1;
                }
            }
            globstar = Some((after, next));
            star = None;
            (p, s) = (after, next);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn table() {
        let cases: [(&str, &str, bool); 24] = [
            ("/data/**", "/data/a/b", true),
            ("/data/**", "/data", true),
            ("/data/**", "/data/", true),
            ("/data/**", "/database", false),
            ("/data/*", "/data/a", true),
            ("/data/*", "/data/a/b", false),
            ("/data/*.log", "/data/x.log", true),
            ("/data/*.log", "/data/x.logs", false),
            ("/data/*.log", "/data/x.log.log", true),
            ("/var/log/**/*.log", "/var/log/a.log", true),
            ("/var/log/**/*.log", "/var/log/a/b/c.log", true),
            ("/var/log/**/*.log", "/var/log/a/b/c.txt", false),
            ("/**/b", "/ab", false),
            ("/**/b", "/a/b", true),
            ("/**/b", "/b", true),
            ("/a?c", "/abc", true),
            ("/a?c", "/a/c", false),
            ("**", "/anything/at/all", true),
            ("/a/**/b/**/c", "/a/x/b/y/z/c", true),
            ("/a/**/b/**/c", "/a/x/c", false),
            ("/a**z", "/a/b/z", true),
            ("/usr/bin/qemu-nbd", "/usr/bin/qemu-nbd", true),
            ("", "", true),
            ("/a", "/ab", false),
        ];
        for (pattern, path, want) in cases {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), want, "{pattern} against {path}");
        }
    }
}
