//! `herald verify`: says of a callback that was kept whether its signatures are valid, and otherwise why not, by trying the usual
//! mistakes. Needs no Redis and changes nothing.

mod captured;

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use self::captured::{Captured, MAX_FILE_BYTES, header_line};
use super::args::read_input;
use crate::{
    config::parse_duration,
    facts::{
        event::MAX_EVENT_BYTES,
        signing::{
            DOJO_SIGNATURE, WEBHOOK_SIGNATURE,
            diagnosis::{Diagnosis, Evidence, Fault, Judgement, diagnose},
        },
    },
    surface::{
        Context, VerbError,
        secret::SecretArgs,
        signatures::{Found, Verdict},
    },
};

/// Somebody waits for it: a second at most.
const SEARCH_BYTES: u64 = 256 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Exit code 4 means that a signature is not valid; what was found is on stdout.")]
pub struct VerifyArgs {
    /// The file with the body, byte for byte as it came; - for stdin [default: the body in a line of `herald listen`, else stdin]
    #[arg(value_name = "BODY")]
    body: Option<PathBuf>,
    /// A header of the callback, 'NAME: VALUE'; can be repeated
    #[arg(long = "header", value_name = "HEADER", action = ArgAction::Append)]
    headers: Vec<String>,
    /// Its headers as HTTP has them, a line each (as `curl -D` writes), or a line of `herald listen --format json`
    #[arg(long, value_name = "FILE")]
    headers_file: Option<PathBuf>,
    #[command(flatten)]
    secret: SecretArgs,
    /// How far webhook-timestamp may be from this machine's clock
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5m")]
    tolerance: Duration,
    /// Only this scheme counts, and must be there [default: every signature that is there, and at least one]
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Wanted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// By a shared secret or a key pair, whichever the secret is
    Standard,
    Dojo,
}

#[derive(Serialize)]
struct Verified {
    valid: bool,
    standard: Found,
    dojo: Found,
}

pub fn run(context: &Context, args: VerifyArgs) -> anyhow::Result<()> {
    let secret = args.secret.read()?.ok_or_else(|| {
        VerbError::Usage("which secret? Give it by --secret, --secret-file or HERALD_LISTEN_SECRET".to_owned())
    })?;
    let captured = gather(&args)?;
    let diagnosis = diagnose(&Evidence {
        secret: &secret,
        headers: &captured.headers,
        body: captured.body.as_deref().unwrap_or_default(),
        now_ms: context.now_ms(),
        tolerance_ms: u64::try_from(args.tolerance.as_millis()).unwrap_or(u64::MAX),
        search_bytes: SEARCH_BYTES,
    });
    let verified = judge(diagnosis, args.scheme);
    let fields = [("webhook-signature", verified.standard.line()), ("dojo-signature", verified.dojo.line())];
    context.output.one(&verified, &fields)?;
    match verified.valid {
        true => Ok(()),
        false => Err(VerbError::Refused(refusal(&verified)).into()),
    }
}

fn judge(diagnosis: Diagnosis, wanted: Option<Wanted>) -> Verified {
    let only = |judgement: &Judgement, name| match judgement {
        Judgement::Absent => Judgement::Invalid(vec![Fault::HeaderMissing(name)]),
        judgement => judgement.clone(),
    };
    let valid = |judgement: &Judgement| *judgement == Judgement::Valid;
    let is_unsigned = diagnosis.standard == Judgement::Absent && diagnosis.dojo == Judgement::Absent;
    let (standard, dojo, valid) = match wanted {
        Some(Wanted::Standard) => {
            let standard = only(&diagnosis.standard, WEBHOOK_SIGNATURE);
            let is_valid = valid(&standard);
            (standard, diagnosis.dojo, is_valid)
        }
        Some(Wanted::Dojo) => {
            let dojo = only(&diagnosis.dojo, DOJO_SIGNATURE);
            let is_valid = valid(&dojo);
            (diagnosis.standard, dojo, is_valid)
        }
        None if is_unsigned => {
            (only(&Judgement::Absent, WEBHOOK_SIGNATURE), only(&Judgement::Absent, DOJO_SIGNATURE), false)
        }
        None => {
            let is_valid = diagnosis.is_valid();
            (diagnosis.standard, diagnosis.dojo, is_valid)
        }
    };
    Verified { valid, standard: (&standard).into(), dojo: (&dojo).into() }
}

fn refusal(verified: &Verified) -> String {
    let found = [("webhook-signature", &verified.standard), ("dojo-signature", &verified.dojo)];
    let wrong = found.iter().filter(|(_, found)| found.verdict == Verdict::Invalid).map(|(name, _)| *name);
    format!("not valid: {}; why is above", wrong.collect::<Vec<_>>().join(" and "))
}

fn gather(args: &VerifyArgs) -> anyhow::Result<Captured> {
    let mut captured = match &args.headers_file {
        Some(path) => Captured::parse(&read_input(path, MAX_FILE_BYTES)?)?,
        None => Captured::default(),
    };
    for line in &args.headers {
        captured.headers.push(header_line(line).ok_or_else(|| {
            VerbError::Usage("--header: write it as 'NAME: VALUE', for example 'webhook-id: evt_…'".to_owned())
        })?);
    }
    if captured.headers.is_empty() {
        let why = "which headers came with it? Give them by --header or --headers-file".to_owned();
        return Err(VerbError::Usage(why).into());
    }
    // A line of `herald listen` has the body too; a file of its own counts before it.
    if args.body.is_some() || captured.body.is_none() {
        let body = args.body.clone().unwrap_or_else(|| PathBuf::from("-"));
        let is_stdin = |path: &PathBuf| path.as_os_str() == "-";
        let others =
            usize::from(args.secret.takes_stdin()) + usize::from(args.headers_file.as_ref().is_some_and(is_stdin));
        if others + usize::from(is_stdin(&body)) > 1 {
            let why = "only one of body, headers and secret can come from stdin: put the others into files".to_owned();
            return Err(VerbError::Usage(why).into());
        }
        captured.body = Some(read_input(&body, 16 * MAX_EVENT_BYTES as u64)?);
    }
    Ok(captured)
}
