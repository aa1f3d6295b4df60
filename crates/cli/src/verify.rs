//! `tensorpress verify`

use std::time::Instant;

use serde::Serialize;
use tensorpress::entropy::container::Verified;
use tensorpress::pipeline::peak_rss_bytes;
use tensorpress::{Error, ErrorKind};

use crate::args::Verify;
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::open::open_packed;
use crate::output::{bytes, print, print_json, ratio, say};
use crate::progress::packing;

#[derive(Serialize)]
struct Verdict {
    ok: bool,
    bytes_before: u64,
    bytes_after: u64,
    ratio: f64,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
    files: usize,
    tensors: usize,
    damages: Vec<Damage>,
}

#[derive(Serialize)]
struct Damage {
    file: Option<String>,
    tensor: Option<String>,
    message: String,
}

impl Damage {
    fn new(error: &Error) -> Self {
        Self {
            file: error.file().map(|file| file.display().to_string()),
            tensor: error.tensor().map(str::to_owned),
            message: error.message().to_owned(),
        }
    }
}

pub(crate) fn run(args: &Verify) -> Outcome {
    let begun = Instant::now();
    let (verified, before, after) = match open_packed(&args.packed, args.base.as_deref()) {
        Ok(packed) => {
            let (bar, mut tell) = packing("verifying", interrupt::asked());
            let verified = packed.verify(Some(&mut tell))?;
            bar.finish_and_clear();
            (verified, packed.unpacked_bytes(), packed.stored_bytes())
        }
        // Without header and index there is nothing else to check.
        Err(error) if is_damage(&error) && args.base.is_none() => {
            let mut verified = Verified::default();
            verified.damages.push(error);
            (verified, 0, std::fs::metadata(&args.packed).map_or(0, |m| m.len()))
        }
        Err(error) => return Err(error.into()),
    };
    for damage in &verified.damages {
        say!("damaged: {damage}");
    }
    let verdict = Verdict {
        ok: verified.damages.is_empty(),
        bytes_before: before,
        bytes_after: after,
        ratio: ratio(after, before),
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        files: verified.files,
        tensors: verified.tensors,
        damages: verified.damages.iter().map(Damage::new).collect(),
    };
    if args.json {
        print_json(&verdict)?;
    } else if verdict.ok {
        print(&format!(
            "whole: {} files, {} tensors, {} in {}\n",
            verdict.files,
            verdict.tensors,
            bytes(before),
            bytes(after)
        ))?;
    }
    if verdict.ok { Ok(()) } else { Err(Failure::Told) }
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corruption | ErrorKind::InsufficientData)
}
