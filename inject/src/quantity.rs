//! Kubernetes' quantities as numbers: `1`, `500m`, `1.5Gi`, `1e3`. Compared and added only, so billionths are enough;
//! the workload file's sizes (`config`) are whole bytes.

use serde_json::Value;

/// Billionths of a quantity, as a text or a number; `None`: it is no quantity.
pub fn nano(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && decimals.is_empty() {
        return None;
    }
    // what is below a billionth is nobody's
    let decimals = format!("{decimals:0<9}");
    let magnitude = format!("{whole}{}", decimals.get(..9)?).parse::<i128>().ok()?;
    let power = |base: i128, exponent: usize| base.checked_pow(u32::try_from(exponent).ok()?);
    let place = |units: &[&str]| units.iter().position(|one| *one == unit);
    if let Some(exponent) = place(&["", "k", "M", "G", "T", "P", "E"]) {
        magnitude.checked_mul(power(1000, exponent)?)
    } else if let Some(exponent) = place(&["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]) {
        magnitude.checked_mul(power(1024, exponent)?)
    } else if let Some(exponent) = place(&["", "m", "u", "n"]) {
        Some(magnitude / power(1000, exponent)?)
    } else {
        let exponent = unit.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
        let factor = power(10, exponent.unsigned_abs() as usize)?;
        if exponent < 0 { Some(magnitude / factor) } else { magnitude.checked_mul(factor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_reads_what_kubernetes_reads() {
        let same = [
            (json!("1"), json!("1000m")),
            (json!(1), json!("1.0")),
            (json!(0.5), json!("500m")),
            (json!("1.5Gi"), json!("1536Mi")),
            (json!("1e3"), json!("1k")),
            (json!("1E"), json!("1E18")),
            (json!("128974848"), json!("123Mi")),
            (json!("100n"), json!("0.1u")),
        ];
        for (one, other) in same {
            assert!(nano(&one).is_some() && nano(&one) == nano(&other), "{one} {other}");
        }
        assert_eq!(nano(&json!("-1.5m")), Some(-1_500_000));
        for wrong in
            [json!(""), json!("1.2.3"), json!("1KB"), json!("Mi"), json!(null), json!("1e99"), json!("9".repeat(60))]
        {
            assert_eq!(nano(&wrong), None, "{wrong}");
        }
    }
}
