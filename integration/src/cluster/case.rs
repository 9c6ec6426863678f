//! Runs test cases on the cluster that the tests of one program share.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::with_node::{Cluster, Plimsoll};
use crate::fleet::durations::{self, Outcome};
use crate::fleet::{self, Place, support};
use crate::runtime::Driver;
use crate::tools::progress::progress;

impl Cluster {
    /// Runs a test case on the cluster that the tests of one program share.
    ///
    /// When the case starts, the cluster has no pods, and Plimsoll is installed as `plimsoll` says.
    /// The first test starts the cluster. Only one test uses the cluster at a time. The cluster
    /// ends when no other test waits for it, because a kubelet without pods still uses half a
    /// processor.
    ///
    /// If the virtual machine dies, the case runs once more on a new cluster. The death of a
    /// virtual machine is a fault of the emulator.
    pub fn with(plimsoll: &Plimsoll, case: impl Fn(&Cluster)) {
        static SHARED: Mutex<Option<Cluster>> = Mutex::new(None);
        support::begin().expect("the file of passed cases cannot be created");
        let _place = Place::for_cluster();
        // A test that panicked may have left objects behind. `prepare` removes such objects.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = Self::run(&mut shared, plimsoll, case);
        if !fleet::is_cluster_wanted() {
            *shared = None;
        }
        if let Err(failure) = outcome {
            panic::resume_unwind(failure);
        }
    }

    /// Runs the case. The error is the panic that ended the case.
    fn run(
        shared: &mut Option<Cluster>,
        plimsoll: &Plimsoll,
        case: impl Fn(&Cluster),
    ) -> thread::Result<()> {
        for is_last in [false, true] {
            let started = Instant::now();
            let prepared = Cell::new(None);
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                let cluster = shared.get_or_insert_with(start_in_own_thread);
                if let Err(error) = cluster.prepare(plimsoll) {
                    panic!("the cluster cannot be prepared for a case: {error:?}");
                }
                prepared.set(Some(started.elapsed()));
                case(cluster);
                let placement =
                    if *plimsoll == Plimsoll::Absent { "without" } else { "as a DaemonSet" };
                if let Err(error) = cluster.passed(placement) {
                    panic!("the passed case cannot be recorded: {error:?}");
                }
            }));
            let fate = match &outcome {
                Ok(()) => None,
                Err(_) => shared.as_ref().and_then(|cluster| cluster.node.fate()),
            };
            let verdict = Outcome::new(outcome.is_ok(), fate.is_some(), is_last);
            let took = started.elapsed();
            durations::note("cluster", verdict, took, prepared.get().unwrap_or(took));
            let Err(failure) = outcome else { break };
            let Some(fate) = fate else { return Err(failure) };
            // The next case needs a new cluster.
            *shared = None;
            if is_last {
                return Err(failure);
            }
            progress(&format!(
                "the cluster's node died during a case, which runs once more: {fate}"
            ));
        }
        Ok(())
    }

    /// Records that the case passed, for the table in SUPPORT.md.
    fn passed(&self, placement: &str) -> Result<()> {
        let version = self.kubectl(&[
            "get",
            "nodes",
            "--output=jsonpath={.items[0].status.nodeInfo.kubeletVersion}",
        ])?;
        support::passed(
            &self.node,
            Driver::Systemd,
            placement,
            Some(version.trim_start_matches('v')),
        )
    }
}

/// Starts a cluster in a thread that never ends.
///
/// The kernel kills the cluster's processes when the thread that started them ends. A test's thread
/// would end too early.
fn start_in_own_thread() -> Cluster {
    let (started, cluster) = mpsc::channel();
    thread::spawn(move || {
        // `start_in_own_thread` waits for this result, so sending cannot fail.
        let _ = started.send(Cluster::start());
        loop {
            thread::park();
        }
    });
    match cluster.recv() {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(error)) => panic!("the cluster cannot be started: {error:?}"),
        Err(_) => panic!("the thread that starts the cluster panicked"),
    }
}
