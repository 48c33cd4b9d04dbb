//! What a plain scalar is. Source: goyaml.v2/resolve.go in kubernetes-sigs/yaml.

use serde_json::{Number, Value};

/// A plain scalar's value. `None`: a number that JSON does not have.
pub fn resolve(text: &str) -> Option<Value> {
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return None,
        _ => return number(text).unwrap_or_else(|| Some(Value::String(text.into()))),
    })
}

/// `None`: it is no number. `Some(None)`: it is none of JSON's.
fn number(text: &str) -> Option<Option<Value>> {
    let plain = match text.bytes().next()? {
        b'.' => text.to_owned(),
        b'+' | b'-' | b'0'..=b'9' => text.replace('_', ""),
        _ => return None,
    };
    if let Some(whole) = integer(&plain) {
        return Some(Some(whole));
    }
    let is_float = {
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        digits(whole)
            && digits(decimals)
            && !(whole.is_empty() && decimals.is_empty())
            && digits(exponent)
            && !exponent.is_empty()
    };
    is_float.then(|| Number::from_f64(plain.parse().ok()?).map(Value::Number))
}

/// With the prefixes of Go and C: `0x`, `0o`, `0b`, and `0` for octal.
fn integer(plain: &str) -> Option<Value> {
    let (sign, unsigned) = match plain.as_bytes().first()? {
        b'-' => ("-", &plain[1..]),
        b'+' => ("", &plain[1..]),
        _ => ("", plain),
    };
    let lower = unsigned.to_ascii_lowercase();
    let (digits, radix) = match lower.get(..2) {
        Some("0x") => (&lower[2..], 16),
        Some("0o") => (&lower[2..], 8),
        Some("0b") => (&lower[2..], 2),
        Some(two) if two.starts_with('0') && two.as_bytes()[1].is_ascii_digit() => (&lower[1..], 8),
        _ => (&*lower, 10),
    };
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    let signed = format!("{sign}{digits}");
    let small = i64::from_str_radix(&signed, radix).map(Value::from);
    small.or_else(|_| u64::from_str_radix(&signed, radix).map(Value::from)).ok()
}

/// Whether a text can stand in block context without quotes and be a text to every reader: letters, no word that means
/// something else, nothing that looks like a number or a date, no mark of YAML's.
pub fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let Some(first) = text.chars().next() else { return false };
    let begins = first.is_ascii_alphanumeric()
        || matches!(first, '/' | '_' | '$' | '(' | '.' | '+')
        || first == '-' && text.as_bytes().get(1).is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'-');
    let is_word = WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    let is_marked = text.contains(": ") || text.contains(" #") || text.ends_with([':', ' ']) || text.starts_with("---");
    let is_printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    // digits of any base, exponents, signs, sexagesimals, dates and times, infinities
    let is_number_like = (first.is_ascii_digit() || matches!(first, '.' | '+' | '-'))
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || b"xXoO_.:,+-tTzZ iInN".contains(&byte));
    begins && is_printable && !is_word && !is_marked && !is_number_like
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        let cases = [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1F", json!(31)),
            ("-0b11", json!(-3)),
            ("1_000", json!(1000)),
            ("08", json!(8.0)),
            ("+5", json!(5)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.50", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1e3", json!(1000.0)),
            ("on", json!(true)),
            ("No", json!(false)),
            ("~", json!(null)),
            ("", json!(null)),
            ("yEs", json!("yEs")),
            ("100Mi", json!("100Mi")),
            ("1:30", json!("1:30")),
            ("2026-01-01", json!("2026-01-01")),
            ("0x", json!("0x")),
            ("-", json!("-")),
            ("+-5", json!("+-5")),
            (".", json!(".")),
            ("1e", json!("1e")),
            ("_1", json!("_1")),
        ];
        for (text, want) in cases {
            assert_eq!(resolve(text), Some(want), "{text}");
        }
        for text in [".inf", "-.INF", ".nan", "1e999"] {
            assert_eq!(resolve(text), None, "{text}");
        }
    }

    #[test]
    fn what_stands_plain_is_a_text() {
        for text in
            ["app", "/freeboard/lib", "--region=/x", "100Mi", "10m", "a b", "key: value"[..3].as_ref(), "5s", "$(A)"]
        {
            assert!(is_plain(text), "{text}");
            assert_eq!(resolve(text), Some(json!(text)));
        }
        for text in [
            "", "yes", "NULL", "0644", "1e3", "1:30", "-", "- a", "a: b", "a #b", "a:", " a", "a ", "é", "[a]", "*a",
            "!a",
        ] {
            assert!(!is_plain(text), "{text}");
        }
    }
}
