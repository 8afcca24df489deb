//! The OpenTelemetry Collector: takes traces by OTLP over HTTP and hands them to Zipkin.
//!
//! * It is built from Go modules, once for all stacks, with three components; a release has two hundred.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::text;
use crate::cache;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::maven::run;
use crate::output::Step;
use crate::program::find_program;
use crate::spec::Spec;

/// That of stack/collector/go.mod.
pub const VERSION: &str = "0.148.0";

fn program(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("otel-collector-{VERSION}"))
}

/// The compiler that it takes; where Go's own archive puts it, or a distribution.
pub fn go() -> Option<PathBuf> {
    let own = PathBuf::from("/usr/local/go/bin/go");
    own.is_file().then_some(own).or_else(|| find_program("go"))
}

pub fn built(layout: &Layout) -> bool {
    program(layout).is_file()
}

/// Builds it once for all stacks.
///
/// # Errors
/// When Go is missing, too old, or cannot get the modules.
pub fn build(layout: &Layout, step: &Step) -> Result<String> {
    let target = program(layout);
    cache::once(layout, &target, |scratch| {
        step.now(format!("the OpenTelemetry Collector {VERSION} from Go modules: two to four minutes"));
        let built = scratch.join("collector");
        let mut command = Command::new(go().context("Go is not installed")?);
        command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&built).arg(".");
        command.current_dir(layout.root.join("stack/collector")).env("CGO_ENABLED", "0");
        run(command).context("go build of stack/collector failed")?;
        ensure!(built.is_file(), "go build made no program");
        Ok(built)
    })?;
    Ok(format!("{VERSION} in {}", target.display()))
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let home = layout.server_dir("collector")?;
    let config = home.join("collector.yaml");
    let tls = if layout.is_encrypted() {
        certificates::give(layout, "collector", &home)?;
        format!(", tls: {{cert_file: {0}/tls.crt, key_file: {0}/tls.key}}", home.display())
    } else {
        String::new()
    };
    layout.write_for_server(&config, &settings(layout, &tls))?;
    let argv = vec![text(&program(layout)), "--config".into(), text(&config)];
    Ok(vec![super::spec(layout, "collector", home, argv, Port::Otlp)])
}

pub fn settings(layout: &Layout, tls: &str) -> String {
    format!(
        "receivers:
  otlp: {{protocols: {{http: {{endpoint: \"127.0.0.1:{}\"{tls}}}}}}}
processors:
  batch: {{timeout: 200ms}}
exporters:
  zipkin: {{endpoint: \"{}\", format: json}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], processors: [batch], exporters: [zipkin]}}
",
        layout.port(Port::Otlp),
        layout.http(Port::Zipkin, "/api/v2/spans"),
    )
}
