//! The text of single values.

use std::time::Duration;

use freeboard_budget::Mode;
use freeboard_budget::law::{MIN_ALLOWED, Target};

use crate::error::{Fault, quoted};
use crate::schema;
use crate::size;

/// Longer than anybody waits for a disk: `"2M"` is two months, and was meant to be two minutes.
const LONGEST_STALL: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn target(text: &str) -> Result<Target, Fault> {
    const MEND: &str = "write a share of the limit, as \"80%\", or a size, as \"480Mi\"";
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.trim_end().parse() {
            Ok(percent @ 1..=100) => Ok(Target::Percent(percent)),
            _ => Err(Fault::new(
                format!("target {} is not a share of the limit", quoted(text)),
                "write a whole number from \"1%\" to \"100%\"",
            )),
        };
    }
    match size("target", text, MEND)? {
        bytes if bytes >= MIN_ALLOWED => Ok(Target::Bytes(bytes)),
        percent @ 1..=100 if text == percent.to_string() => Err(Fault::new(
            format!("target {} is a size in bytes", quoted(text)),
            format!("write \"{percent}%\" for a share of the limit"),
        )),
        _ => Err(Fault::new(format!("target {} is below {}", quoted(text), size::show(MIN_ALLOWED)), MEND)),
    }
}

pub(crate) fn mode(text: &str) -> Result<Mode, Fault> {
    Ok(match text {
        "auto" => Mode::Auto,
        "always" => Mode::Always,
        "observe" => Mode::Observe,
        "off" => Mode::Off,
        _ => return Err(schema::unknown_value("mode", text, &["auto", "always", "observe", "off"])),
    })
}

/// `None`: "auto".
pub(crate) fn window(text: &str) -> Result<Option<u64>, Fault> {
    if text == "auto" {
        return Ok(None);
    }
    match size("window", text, "write \"auto\", or a size, as \"4MiB\"")? {
        bytes if bytes >= MIN_ALLOWED => Ok(Some(bytes)),
        _ => Err(Fault::new(
            format!("window {} is below {}", quoted(text), size::show(MIN_ALLOWED)),
            "write \"1Mi\" or more, or \"auto\"; to leave writes alone, mode = \"off\"",
        )),
    }
}

pub(crate) fn max_stall(text: &str) -> Result<Duration, Fault> {
    match humantime::parse_duration(text) {
        Err(_) => Err(Fault::new(
            format!("max_stall {} is not a time", quoted(text)),
            "write a number and a unit, as \"10s\", \"500ms\" or \"2m\"",
        )),
        Ok(stall) if stall < Duration::from_millis(1) => Err(Fault::new(
            format!("max_stall {} is below 1 ms, which lets every call go", quoted(text)),
            "write \"1ms\" or more; to hold nothing back, mode = \"observe\"",
        )),
        Ok(stall) if stall > LONGEST_STALL => Err(Fault::new(
            format!("max_stall {} is longer than a day", quoted(text)),
            "write \"24h\" or less; \"m\" is minutes, \"M\" is months",
        )),
        Ok(stall) => Ok(stall),
    }
}

/// `true`: the pages of what was read are given back.
pub(crate) fn reads(text: &str) -> Result<bool, Fault> {
    match text {
        "drop-behind" => Ok(true),
        _ => Err(schema::unknown_value("reads", text, &["drop-behind"])),
    }
}

/// A size; `mend` is for what does not even begin like one.
fn size(key: &str, text: &str, mend: &str) -> Result<u64, Fault> {
    size::parse(text).map_err(|error| {
        if text.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
            error.0.of_key(key)
        } else {
            Fault::new(format!("{key} {} is not a size", quoted(text)), mend)
        }
    })
}
