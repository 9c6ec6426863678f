//! Runs a plugin's event handlers within the runtime's deadline.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use protobuf::MessageField;
use tracing::error;
use ttrpc::r#async::TtrpcContext;

use crate::plugin::Refusal;

tokio::task_local! {
    /// A marker that is set while a plugin handles an event.
    static IN_EVENT: ();
}

/// Returns whether the caller runs in a plugin's event handler. The runtime is locked meanwhile.
pub(crate) fn in_event() -> bool {
    IN_EVENT.try_with(|()| ()).is_ok()
}

/// Percentage of the runtime's deadline after which the service replies without the plugin.
const PATIENCE: u32 = 90;

/// The reason why a handler gave no reply.
pub(crate) enum Failure {
    Refused(Refusal),
    Panicked,
    TooSlow(Duration),
}

/// Runs a plugin's handler, for at most [`PATIENCE`] percent of the runtime's deadline. Pass an
/// async block around the call, so that this function also catches a panic before the first await.
pub(crate) async fn run<T>(
    context: &TtrpcContext,
    handler: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Failure> {
    let guarded = AssertUnwindSafe(IN_EVENT.scope((), handler)).catch_unwind();
    // The runtime may omit its deadline.
    let deadline = match u64::try_from(context.timeout_nano) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos) * PATIENCE / 100,
        _ => Duration::MAX,
    };
    match tokio::time::timeout(deadline, guarded).await {
        Ok(Ok(Ok(reply))) => Ok(reply),
        Ok(Ok(Err(refusal))) => Err(Failure::Refused(refusal)),
        Ok(Err(_)) => Err(Failure::Panicked),
        Err(_) => Err(Failure::TooSlow(deadline)),
    }
}

/// Returns the reply to an event. If the handler panics or takes too long, the reply is empty.
///
/// Without a reply, the runtime would block until its deadline. The runtime would then drop the
/// plugin and kill the process that it launched. A runtime that notices its deadline late may even
/// treat the missing reply as a refusal.
pub(crate) async fn answer<T: Default>(
    event: &'static str,
    context: &TtrpcContext,
    handler: impl Future<Output = Result<T, Refusal>>,
) -> ttrpc::Result<T> {
    match run(context, handler).await {
        Ok(reply) => Ok(reply),
        Err(Failure::Refused(refusal)) => Err(status(refusal)),
        Err(Failure::Panicked) => {
            error!(event, "the plugin panicked; the runtime gets an empty reply");
            Ok(T::default())
        }
        Err(Failure::TooSlow(deadline)) => {
            error!(event, ?deadline, "the plugin took too long; the runtime gets an empty reply");
            Ok(T::default())
        }
    }
}

pub(crate) fn status(message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, message))
}

pub(crate) fn owned<T: Default>(field: MessageField<T>) -> T {
    field.into_option().unwrap_or_default()
}
