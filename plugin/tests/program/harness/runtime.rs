//! A connected runtime, which writes the files of its containers.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nri::NriVersion;
use nri::api::{self, ContainerUpdate, Event, LinuxResources};
use nri::runtime::{Connection, Options, RequestError, UpdateRequest};
use tokio::sync::mpsc;

use crate::harness::files::{make_files, overwrite};
use crate::harness::pod::Pod;

/// A connected runtime, with the cgroup files of its containers.
pub struct Runtime {
    pub connection: Connection,
    pub updates: mpsc::UnboundedReceiver<UpdateRequest>,
    pub root: PathBuf,
    /// Whether the plugin may end during a call. A failed call then waits for 60 s before it
    /// panics, so that the test ends first.
    pub outlives_plugin: bool,
}

impl Runtime {
    async fn answer<T>(&self, call: impl Future<Output = Result<T, RequestError>>) -> T {
        let answer = call.await;
        if answer.is_err() && self.outlives_plugin {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        answer.unwrap()
    }

    pub async fn create(&self, pod: &Pod) -> HashMap<String, String> {
        let call = self.connection.create_container(pod.sandbox.clone(), pod.container.clone());
        let reply = self.answer(call).await;
        reply
            .adjust
            .unwrap_or_default()
            .linux
            .unwrap_or_default()
            .resources
            .unwrap_or_default()
            .unified
    }

    pub async fn update(&self, pod: &Pod, resources: LinuxResources) -> HashMap<String, String> {
        let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
        let reply =
            self.answer(self.connection.update_container(sandbox, container, resources)).await;
        let [update] = <[ContainerUpdate; 1]>::try_from(reply.update)
            .expect("the answer must update one container");
        assert_eq!(update.container_id, pod.container.id);
        update.linux.unwrap_or_default().resources.unwrap_or_default().unified
    }

    pub async fn synchronize(&self, pods: &[&Pod]) {
        let sandboxes = pods.iter().map(|pod| pod.sandbox.clone()).collect();
        let containers = pods.iter().map(|pod| pod.container.clone()).collect();
        let updates = self.connection.synchronize(sandboxes, containers).await.unwrap();
        assert_eq!(
            updates,
            [],
            "the answer to Synchronize must have no updates, for which the runtime keeps its lock"
        );
    }

    pub async fn started(&self, pod: &Pod) {
        let event = Event::START_CONTAINER;
        self.answer(self.connection.event(event, pod.sandbox.clone(), pod.container.clone())).await;
    }

    pub async fn updated(&self, pod: &Pod) {
        let event = Event::POST_UPDATE_CONTAINER;
        self.answer(self.connection.event(event, pod.sandbox.clone(), pod.container.clone())).await;
    }

    pub fn cgroup(&self, pod: &Pod) -> PathBuf {
        self.root.join(pod.container.linux.cgroups_path.trim_start_matches('/'))
    }

    /// Creates the container's cgroup with its memory limit, and missing ancestor cgroups. All
    /// other values are the kernel's defaults.
    pub fn make_cgroup(&self, pod: &Pod) {
        let cgroup = self.cgroup(pod);
        for above in cgroup.ancestors().skip(1).take_while(|above| **above != *self.root) {
            if !above.join("memory.min").exists() {
                make_files(above, "max");
            }
        }
        let limit = pod.container.linux.resources.memory.limit.value;
        make_files(&cgroup, &if limit > 0 { limit.to_string() } else { "max".into() });
    }

    /// Sets the memory usage of a container to `current`. The kernel can reclaim `cache` bytes of
    /// this usage.
    pub fn uses(&self, pod: &Pod, current: i64, cache: i64) {
        let cgroup = self.cgroup(pod);
        let stat = format!(
            "anon {}\nfile {cache}\ninactive_anon {}\ninactive_file {cache}\n",
            current - cache,
            current - cache
        );
        fs::write(cgroup.join("new"), stat).unwrap();
        fs::rename(cgroup.join("new"), cgroup.join("memory.stat")).unwrap();
        fs::write(cgroup.join("new"), format!("{current}\n")).unwrap();
        fs::rename(cgroup.join("new"), cgroup.join("memory.current")).unwrap();
        // The usage of an ancestor cgroup is the sum of its children's usage.
        for above in cgroup.ancestors().skip(1).take_while(|above| **above != *self.root) {
            let children = fs::read_dir(above).unwrap().map(|entry| entry.unwrap().path());
            let usage = |child: PathBuf| {
                fs::read_to_string(child.join("memory.current")).ok()?.trim().parse::<i64>().ok()
            };
            let sum: i64 = children.filter_map(usage).sum();
            fs::write(above.join("memory.current"), format!("{sum}\n")).unwrap();
        }
    }

    pub fn apply(&self, pod: &Pod, unified: &HashMap<String, String>) {
        for (name, value) in unified {
            overwrite(&self.cgroup(pod).join(name), value);
        }
    }

    /// Returns the path of a cgroup in the file system.
    pub fn path(&self, cgroup: &str) -> PathBuf {
        self.root.join(cgroup)
    }

    /// Returns the content of a cgroup's file without trailing white space. The result may be empty
    /// while another program truncates and writes the file.
    pub fn file(&self, cgroup: &str, name: &str) -> String {
        let path = self.root.join(cgroup).join(name);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
            .trim_end()
            .to_owned()
    }

    pub fn set_file(&self, cgroup: &str, name: &str, value: &str) {
        overwrite(&self.root.join(cgroup).join(name), value);
    }

    /// Waits until a cgroup's file contains `value`.
    pub async fn holds(&self, cgroup: &str, name: &str, value: impl ToString) {
        let wanted = value.to_string();
        let looks = async {
            while self.file(cgroup, name) != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), looks).await.is_err() {
            panic!(
                "{cgroup}/{name} must be {wanted} within 30 s, but is {}",
                self.file(cgroup, name)
            );
        }
    }

    /// Creates and starts a pod with its container as a runtime does, with the values that the
    /// plugin requests.
    pub async fn run(&self, pod: &Pod) {
        self.pod_event(Event::RUN_POD_SANDBOX, pod).await;
        let wanted = self.create(pod).await;
        self.make_cgroup(pod);
        self.apply(pod, &wanted);
        self.started(pod).await;
    }

    /// Sets the memory usage of a container's cgroup as if the container ran, without an event for
    /// the plugin.
    pub fn run_unseen(&self, pod: &Pod) {
        fs::write(self.cgroup(pod).join("memory.current"), "4096\n").unwrap();
    }

    /// Makes a cgroup that belongs to no container.
    pub fn make_cgroup_at(&self, cgroup: &str) {
        make_files(&self.root.join(cgroup), "max");
    }

    /// Ends a pod as the runtime and the kubelet do.
    pub async fn end(&self, pod: &Pod) {
        fs::remove_dir_all(self.cgroup(pod)).unwrap();
        self.stop(pod).await;
        self.pod_event(Event::STOP_POD_SANDBOX, pod).await;
        self.pod_event(Event::REMOVE_POD_SANDBOX, pod).await;
        fs::remove_dir_all(self.cgroup(pod).parent().unwrap()).unwrap();
    }

    pub async fn stop(&self, pod: &Pod) {
        self.answer(self.connection.stop_container(pod.sandbox.clone(), pod.container.clone()))
            .await;
    }

    pub async fn pod_event(&self, event: Event, pod: &Pod) {
        self.answer(self.connection.event(event, pod.sandbox.clone(), api::Container::default()))
            .await;
    }

    pub fn read(&self, pod: &Pod, name: &str) -> String {
        fs::read_to_string(self.cgroup(pod).join(name)).unwrap().trim_end().to_owned()
    }

    /// Waits for the plugin's next request and applies the requested values to these pods. Returns
    /// the requested values by container ID.
    pub async fn serve_update(
        &mut self,
        pods: &[&Pod],
    ) -> HashMap<String, HashMap<String, String>> {
        let request = tokio::time::timeout(Duration::from_secs(60), self.updates.recv()).await;
        self.serve(
            request
                .expect("the plugin must request an update within 60 s")
                .expect("the plugin must stay connected"),
            pods,
        )
    }

    /// Checks that the plugin requests no memory limit within this time. Other requests are
    /// allowed.
    pub async fn asks_for_no_limit(&mut self, time: Duration) {
        let asked = tokio::time::timeout(time, async {
            while let Some(request) = self.updates.recv().await {
                let memory = request.update[0].linux.resources.memory.clone();
                assert!(memory.is_none(), "the plugin must not request a limit: {memory:?}");
                request.succeed(Vec::new());
            }
        });
        assert!(asked.await.is_err(), "the plugin must stay connected");
    }

    /// Applies the plugin's requests to these pods until `done` is ready.
    pub async fn serve_until<T>(&mut self, pods: &[&Pod], done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                Some(request) = self.updates.recv() => drop(self.serve(request, pods)),
            }
        }
    }

    fn serve(
        &self,
        request: UpdateRequest,
        pods: &[&Pod],
    ) -> HashMap<String, HashMap<String, String>> {
        let mut asked = HashMap::new();
        for update in &request.update {
            let unified = update.linux.resources.unified.clone();
            if let Some(pod) = pods.iter().find(|pod| pod.container.id == update.container_id) {
                self.apply(pod, &unified);
            }
            asked.insert(update.container_id.clone(), unified);
        }
        request.succeed(Vec::new());
        asked
    }
}

/// Returns the options of CRI-O with NRI 0.11. From NRI 0.10 on, the runtime reports in-place
/// resizes of pods to plugins.
pub fn crio() -> Options {
    Options {
        name: "cri-o".into(),
        version: "1.36.3".into(),
        nri_version: NriVersion(0, 11, 0),
        ..Options::default()
    }
}
