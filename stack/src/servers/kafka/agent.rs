//! The exporter of Kafka's metrics: the JMX agent of Prometheus, in the broker's own process. From Maven Central.
//!
//! * It reads when it is scraped, and only the beans that `compose/kafka/metrics.yml` names.
//! * Its listener has no TLS: it takes key stores of Java only. So it stays on the loopback.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::extras::Extra;
use crate::layout::{Layout, Port};
use crate::maven::{Artifact, Content, Download};
use crate::output::Step;
use crate::probe;
use crate::servers::Node;

/// The newest that Maven Central has.
pub const VERSION: &str = "1.0.1";
const NAME: &str = "jmx_prometheus_javaagent";

pub fn port(node: Node) -> Port {
    node.of([Port::KafkaMetrics, Port::KafkaMetrics2, Port::KafkaMetrics3])
}

/// Where it is, or will be.
pub fn folder(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("jmx-agent-{VERSION}"))
}

pub fn downloaded(layout: &Layout) -> bool {
    folder(layout).is_dir()
}

/// Downloads it once for all stacks.
///
/// # Errors
/// As [`Download::ensure`].
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let target = folder(layout);
    let content = Content::File(Artifact::jar("io.prometheus.jmx", NAME, VERSION));
    let what = format!("the JMX agent {VERSION} from Maven");
    Download { content, target: &target }.ensure(layout, step, &what, |_| Ok(()))?;
    Ok(format!("{VERSION} in {}", target.display()))
}

/// The argument of Java that loads it, in a stack that has exporters. Its rules are written to `home`.
///
/// # Errors
/// When they cannot be written.
pub fn argument(layout: &Layout, node: Node, home: &Path) -> Result<Option<String>> {
    if !Extra::of(layout).contains(&Extra::Observe) {
        return Ok(None);
    }
    let rules = home.join("metrics.yml");
    layout.write_for_server(&rules, &layout.compose_file("kafka/metrics.yml")?)?;
    let jar = folder(layout).join(format!("{NAME}-{VERSION}.jar"));
    let port = layout.port(port(node));
    Ok(Some(format!("-javaagent:{}=127.0.0.1:{port}:{}", jar.display(), rules.display())))
}

/// Whether a Kafka that runs was started before the stack had exporters.
pub fn is_missing(layout: &Layout, node: Node) -> bool {
    Extra::of(layout).contains(&Extra::Observe) && probe::port_is_free(layout.port(port(node)))
}
