//! Measures how long `plimsoll lint` takes to check 10,000 documents.
//!
//! `cargo bench -p plimsoll --bench lint`

// The setting in clippy.toml allows `unwrap` only in test functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DOCUMENTS: usize = 10_000;

/// Number of runs of each case. The shortest run counts, because other load on the machine only
/// lengthens a run.
const TIMES: usize = 5;

/// Returns a Deployment of usual length, with two containers and the usual fields besides
/// resources.
fn document(i: usize) -> String {
    let (request, limit) = (64 << (i % 4), 512 << (i % 3));
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web-{i}
  namespace: shop
  labels: {{app.kubernetes.io/name: web, app.kubernetes.io/instance: web-{i}}}
spec:
  replicas: 3
  selector:
    matchLabels:
      app.kubernetes.io/instance: web-{i}
  template:
    metadata:
      labels:
        app.kubernetes.io/name: web
        app.kubernetes.io/instance: web-{i}
      annotations:
        throttling-factor.plimsoll.nri.io: '0.8'
    spec:
      serviceAccountName: web
      securityContext:
        runAsNonRoot: true
      containers:
      - name: web
        image: registry.example.com/shop/web:1.{i}
        args: [--listen=:8080, --log-level=info]
        env:
        - name: DATABASE_HOST
          value: database.shop.svc
        - name: DATABASE_PASSWORD
          valueFrom:
            secretKeyRef:
              name: database
              key: password
        ports:
        - name: http
          containerPort: 8080
        readinessProbe:
          httpGet:
            path: /ready
            port: http
          periodSeconds: 5
        resources:
          requests:
            cpu: 100m
            memory: {request}Mi
          limits:
            memory: {limit}Mi
        volumeMounts:
        - name: cache
          mountPath: /var/cache/web
      - name: logs
        image: registry.example.com/tools/logs:2.1
        resources:
          limits:
            memory: 64Mi
      volumes:
      - name: cache
        emptyDir: {{}}
"
    )
}

/// Returns the shortest time of `plimsoll lint` for a directory that holds all documents in `files`
/// files.
fn lint(files: usize, format: &str) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    for file in 0..files {
        let documents = (0..DOCUMENTS).filter(|i| i % files == file).map(document);
        fs::write(directory.path().join(format!("{file}.yaml")), documents.collect::<String>())
            .unwrap();
    }
    let run = || {
        let start = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.arg("lint").arg(directory.path()).args(["--format", format]).stdout(Stdio::null());
        // The documents cause warnings, which do not count as failures.
        assert!(command.status().unwrap().code() == Some(0));
        start.elapsed()
    };
    (0..TIMES).map(|_| run()).min().unwrap()
}

fn main() {
    let kib = (0..DOCUMENTS).map(|i| document(i).len()).sum::<usize>() / 1024;
    for (files, format) in [(1, "text"), (DOCUMENTS, "text"), (1, "json"), (1, "sarif")] {
        let took = lint(files, format).as_secs_f64() * 1e3;
        println!(
            "{DOCUMENTS} documents ({kib} KiB) in {files:>5} files, as {format:<5}: {took:>6.0} ms"
        );
    }
}
