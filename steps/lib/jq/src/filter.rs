//! Writes a value of a filter as JSON: strictly, because what a filter can make is more than JSON.

use std::io::Write as _;

use jaq_json::{Num, Val};
use serde::de::IgnoredAny;

/// Integers up to here are exact in a double, and are written as integers.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Writes a value as compact JSON. Bytes that are not UTF-8 are replaced; what has no form in JSON
/// is an error.
pub fn write(value: &Val, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Val::Null => out.extend_from_slice(b"null"),
        Val::Bool(true) => out.extend_from_slice(b"true"),
        Val::Bool(false) => out.extend_from_slice(b"false"),
        Val::Num(number) => write_number(number, out)?,
        Val::TStr(text) => write_text(text, out),
        Val::BStr(_) => return Err("the filter gives raw bytes, which are not JSON".to_owned()),
        Val::Arr(list) => {
            out.push(b'[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Val::Obj(object) => {
            out.push(b'{');
            for (index, (key, item)) in object.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                let Val::TStr(key) = key else {
                    return Err(format!(
                        "the filter gives an object with a key that is not a string: {key}"
                    ));
                };
                write_text(key, out);
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(text);
    serde_json::to_writer(out, &*text).expect("a string is JSON and a vector takes all");
}

fn write_number(number: &Num, out: &mut Vec<u8>) -> Result<(), String> {
    match number {
        Num::Float(float) => write_float(*float, out),
        Num::Dec(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        // What a filter's author may write is more than JSON allows: `.5`.
        Num::Dec(text) => {
            let float = text
                .parse()
                .map_err(|_| format!("`{text}` is not a number"))?;
            write_float(float, out)
        }
        Num::Int(_) | Num::BigInt(_) => {
            write!(out, "{number}").expect("a vector takes all");
            Ok(())
        }
    }
}

fn write_float(float: f64, out: &mut Vec<u8>) -> Result<(), String> {
    if float.is_nan() {
        return Err("the filter gives NaN, which is not JSON".to_owned());
    }
    if float.is_infinite() {
        return Err("the filter gives an infinite number, which is not JSON".to_owned());
    }
    if float.fract() == 0.0 && float.abs() < EXACT_MAX {
        write!(out, "{float:.0}").expect("a vector takes all");
    } else {
        serde_json::to_writer(out, &float).expect("a finite number is JSON and a vector takes all");
    }
    Ok(())
}
