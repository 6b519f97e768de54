//! `devices` as a user runs it, with drivers and without.

mod common;

use std::process::{Command, Output};

use serde_json::Value;

fn devices(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    program.env("WAYINFER_NO_CONFIG", "1").arg("devices").args(args).envs(environment.iter().copied());
    program.output().expect("the program starts")
}

fn stdout(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

/// The loader looks for OpenCL's drivers in this folder, CUDA for its cards in this list.
const NOTHING: [(&str, &str); 2] = [("OCL_ICD_VENDORS", "/nonexistent/"), ("CUDA_VISIBLE_DEVICES", "")];

#[test]
fn without_a_driver_there_is_a_sentence() {
    assert_eq!(stdout(&devices(&["--json"], &NOTHING)), "[]\n");
    let output = devices(&[], &NOTHING);
    let text = stdout(&output);
    assert!(text.starts_with("no driver: OpenCL"), "{text}");
    assert!(text.contains("CUDA") && text.contains("computed on the CPU"), "{text}");
}

#[test]
fn devices_are_listed_and_a_cpu_is_not_used() {
    let output = devices(&["--json"], &[]);
    let all: Vec<Value> = serde_json::from_str(stdout(&output)).expect("JSON");
    let table = devices(&[], &[]);
    for (i, device) in all.iter().enumerate() {
        assert_eq!(device["index"], i);
        assert!(device["memory_bytes"].as_u64().unwrap() > 0);
        assert_eq!(device["used"].as_bool().unwrap(), device["reason"].is_null(), "{device}");
        assert!(stdout(&table).contains(device["api"].as_str().unwrap()), "{table:?}");
    }
    let Some(cpu) = all.iter().find(|device| device["is_cpu"] == true) else {
        common::say("skipped: no OpenCL for the CPU (PoCL) is installed");
        return;
    };
    assert_eq!(cpu["used"], false);
    assert_eq!(cpu["api"], "OpenCL");
    assert!(stdout(&table).contains("no: it is the CPU"), "{table:?}");
}
