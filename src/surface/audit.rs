//! How a verb acts: [`audited`] writes in the audit log that it begins, and how it ended. A verb asks and checks first, so what
//! is refused at once, and a dry run, leave no entry.

use super::{
    context::Context,
    error::{ExitCode, code_of, message_of},
    output::note,
};
use crate::{
    app,
    facts::{
        audit::{Act, Begun, Surface, Tally, Verdict},
        id::EntryId,
    },
    store::audit::{AuditError, Judged},
};

impl Judged for anyhow::Error {
    fn verdict(&self) -> Verdict {
        match code_of(self) {
            // Nobody reads its output, or replicas are late; the act is done.
            ExitCode::Done | ExitCode::Unconfirmed => Verdict::Done,
            ExitCode::Usage | ExitCode::NotFound | ExitCode::Refused => Verdict::Refused,
            ExitCode::Failed | ExitCode::Unanswered | ExitCode::Partly | ExitCode::Broken => Verdict::Failed,
        }
    }

    fn told(&self) -> String {
        if self.verdict() == Verdict::Done { String::new() } else { message_of(self) }
    }
}

/// An operator's act, as far as every verb says it.
pub fn begun(act: Act, by: &str, why: &str) -> Begun {
    Begun::new(act, by, why, app::origin(Surface::Cli))
}

/// Has `work` done between two entries. Nothing is done if the first one cannot be written.
pub async fn audited<T>(
    context: &Context,
    begun: Begun,
    work: impl AsyncFnOnce(&mut Tally) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let audit = app::audit(&context.config, Surface::Cli)?;
    let entry = audit.begin(&begun).await.map_err(AuditError)?;
    let mut tally = Tally::default();
    let done = work(&mut tally).await;
    if let Err(error) = audit.end(entry, done.as_ref().map(drop), tally).await {
        note(format_args!("warning: how this ended is not in the audit log: {error}"));
    }
    done
}

/// The same for what goes on without this process: whoever carries it out writes how it ended, so only that it could not be begun is
/// written here.
pub async fn audited_until_its_end<T>(
    context: &Context,
    begun: Begun,
    work: impl AsyncFnOnce(Option<EntryId>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let audit = app::audit(&context.config, Surface::Cli)?;
    let entry = audit.begin(&begun).await.map_err(AuditError)?;
    let done = work(entry).await;
    if let Err(error) = &done
        && let Err(error) = audit.end(entry, Err(error), Tally::default()).await
    {
        note(format_args!("warning: how this ended is not in the audit log: {error}"));
    }
    done
}
