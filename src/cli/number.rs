//! Floats for JSON, which has no NaN and no infinities: those are the strings "NaN", "Infinity" and
//! "-Infinity".

use serde::{Serialize, Serializer};

/// A float as JSON.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// As few digits as give the same f32 again.
    F32(f32),
    F64(f64),
}

impl From<f32> for Number {
    fn from(value: f32) -> Number {
        Number::F32(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Number {
        Number::F64(value)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Number::F32(v) if v.is_finite() => serializer.serialize_f32(v),
            Number::F64(v) if v.is_finite() => serializer.serialize_f64(v),
            Number::F32(v) => serializer.serialize_str(non_finite(f64::from(v))),
            Number::F64(v) => serializer.serialize_str(non_finite(v)),
        }
    }
}

fn non_finite(v: f64) -> &'static str {
    match v {
        v if v.is_nan() => "NaN",
        v if v > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_takes_them_all() {
        let values: [Number; 5] = [
            0.1f32.into(),
            (-0.0f32).into(),
            f32::NAN.into(),
            f64::INFINITY.into(),
            f64::NEG_INFINITY.into(),
        ];
        let text = serde_json::to_string(&values).expect("JSON");
        assert_eq!(text, r#"[0.1,-0.0,"NaN","Infinity","-Infinity"]"#);
    }
}
