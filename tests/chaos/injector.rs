//! Makes faults, and ends them: the one place that breaks things.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use towpath_tests::{Condition, Instance};

use crate::command::{docker, run};
use crate::engine::Engine;
use crate::fault::Kind;
use crate::flow::{NAME, SCALED, Template};
use crate::operator::{Operations, Operator};
use crate::printer::say;
use crate::schedule::Planned;
use crate::target::Target;

/// How slow a slow network is, for each chunk.
const SLOW: Duration = Duration::from_millis(40);

/// What became of a fault.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// Its number.
    pub(crate) number: usize,
    /// What it was.
    pub(crate) kind: Kind,
    /// What it hit, or why it could not be made.
    pub(crate) hit: Result<String, String>,
}

/// Makes faults, and ends them.
pub(crate) struct Injector {
    instance: Arc<Instance>,
    target: Arc<Target>,
    template: Template,
    operator: Operator,
    engine: Option<Engine>,
    version: u64,
    made: BTreeMap<usize, Made>,
}

impl Injector {
    pub(crate) fn new(
        instance: Arc<Instance>,
        target: Arc<Target>,
        template: Template,
        operator: Operator,
        engine: Option<Engine>,
    ) -> Self {
        Self {
            instance,
            target,
            template,
            operator,
            engine,
            version: 0,
            made: BTreeMap::new(),
        }
    }

    /// Makes a fault.
    pub(crate) fn inject(&mut self, fault: &Planned) {
        let hit = self.make(fault);
        let (Ok(text) | Err(text)) = &hit;
        let mark = if hit.is_ok() { "" } else { "not made: " };
        say(&format!("{fault}  {mark}{text}"));
        self.made.insert(
            fault.number,
            Made {
                number: fault.number,
                kind: fault.kind,
                hit,
            },
        );
    }

    fn make(&mut self, fault: &Planned) -> Result<String, String> {
        let broker = self.instance.broker.container.clone();
        match fault.kind {
            Kind::AgentKilled => {
                let (name, id) = self.container(fault.pick)?;
                kill_9(agent_of(&id)?)?;
                Ok(name)
            }
            Kind::StepProcessKilled => {
                let (name, id) = self.container(fault.pick)?;
                kill_9(step_process_of(agent_of(&id)?)?)?;
                Ok(name)
            }
            Kind::ContainerKilled => self.on_container(fault.pick, &["kill"]),
            Kind::ContainerRemoved => self.on_container(fault.pick, &["rm", "-f"]),
            Kind::ContainerPaused => {
                let (name, id) = self.container(fault.pick)?;
                docker(&["pause", &id])?;
                // The name is how it is found again.
                Ok(name)
            }
            Kind::ControlPlaneKilled => {
                self.instance.kill_control_plane();
                Ok("the control plane".to_owned())
            }
            Kind::BrokerKilled => docker(&["kill", &broker]),
            Kind::BrokerPaused => docker(&["pause", &broker]),
            Kind::BrokerAlarm => alarm(&broker, true).map(|()| broker),
            Kind::AgentsCut => self.set_agents(Condition::Cut),
            Kind::AgentsBlackHole => self.set_agents(Condition::BlackHole),
            Kind::AgentsSlow => self.set_agents(Condition::Slow(SLOW)),
            Kind::ControlPlaneCut => self.set_control(Condition::Cut),
            Kind::ControlPlaneBlackHole => self.set_control(Condition::BlackHole),
            Kind::EngineRestarted => self.engine()?.stop().map(|()| "the engine".to_owned()),
            Kind::EngineKilled => self.engine()?.kill().map(|()| "the engine".to_owned()),
            Kind::FlowApplied => {
                self.version += 1;
                let text = self.template.text(self.version);
                let path = self
                    .instance
                    .write(&format!("flow-{}.yaml", self.version), &text);
                self.operator.give(&["apply", "--no-wait", &path])?;
                Ok(format!("version {}", self.version))
            }
            Kind::FlowRolledBack if self.version == 0 => {
                Err("there is no earlier version yet".to_owned())
            }
            Kind::FlowRolledBack => {
                self.operator.give(&["rollback", NAME])?;
                Ok(NAME.to_owned())
            }
            Kind::StepScaled => {
                let step = SCALED[index(fault.pick, SCALED.len())];
                let replicas = (1 + index(fault.pick >> 8, 4)).to_string();
                self.operator.give(&["scale", NAME, step, &replicas])?;
                Ok(format!("`{step}` to {replicas}"))
            }
            Kind::FlowPaused => {
                self.operator.give(&["pause", NAME])?;
                Ok(NAME.to_owned())
            }
        }
    }

    /// Ends a fault. What cannot be ended now is ended at the end.
    pub(crate) fn heal(&mut self, fault: &Planned) {
        let Some(Ok(hit)) = self.made.get(&fault.number).map(|made| made.hit.clone()) else {
            return;
        };
        let broker = self.instance.broker.container.clone();
        let healed = match fault.kind {
            Kind::ContainerPaused => docker(&["unpause", &hit]).map(drop),
            Kind::ControlPlaneKilled => {
                self.instance.launch();
                Ok(())
            }
            Kind::BrokerKilled => docker(&["start", &broker]).map(drop),
            Kind::BrokerPaused => docker(&["unpause", &broker]).map(drop),
            Kind::BrokerAlarm => alarm(&broker, false),
            Kind::AgentsCut | Kind::AgentsBlackHole | Kind::AgentsSlow => {
                self.set_agents(Condition::Open).map(drop)
            }
            Kind::ControlPlaneCut | Kind::ControlPlaneBlackHole => {
                self.set_control(Condition::Open).map(drop)
            }
            // The broker's container comes back with the engine, unless it was killed by hand.
            Kind::EngineRestarted | Kind::EngineKilled => self
                .engine()
                .and_then(Engine::start)
                .and_then(|()| docker(&["start", &broker]).map(drop)),
            Kind::FlowPaused => self.operator.give(&["resume", NAME]),
            Kind::AgentKilled
            | Kind::StepProcessKilled
            | Kind::ContainerKilled
            | Kind::ContainerRemoved
            | Kind::FlowApplied
            | Kind::FlowRolledBack
            | Kind::StepScaled => Ok(()),
        };
        if let Err(error) = healed {
            // A container that was paused may have been replaced meanwhile: that heals it, too.
            say(&format!(
                "    {} is not healed yet: {error}",
                fault.kind.name()
            ));
        }
        self.target.await_recovery(fault.number);
    }

    /// Ends every fault there may be, however the run went.
    pub(crate) fn heal_everything(&mut self) {
        let broker = self.instance.broker.container.clone();
        if let Some(engine) = &self.engine
            && let Err(error) = engine.start()
        {
            say(&format!("error: the engine cannot be started: {error}"));
        }
        // Each of these fails where there is nothing to heal.
        drop(docker(&["unpause", &broker]));
        drop(docker(&["start", &broker]));
        for (name, _) in self.containers("status=paused").unwrap_or_default() {
            drop(docker(&["unpause", &name]));
        }
        for condition in [
            self.set_agents(Condition::Open),
            self.set_control(Condition::Open),
        ] {
            drop(condition);
        }
        self.instance.launch();
        for _ in 0..60 {
            match alarm(&broker, false) {
                Ok(()) => break,
                Err(_) => std::thread::sleep(Duration::from_secs(1)),
            }
        }
        if let Err(error) = self.operator.give(&["resume", NAME]) {
            say(&format!("error: {error}"));
        }
    }

    /// Says what was made, when the operator has done everything.
    pub(crate) fn finish(self) -> (Vec<Made>, Operations) {
        (self.made.into_values().collect(), self.operator.finish())
    }

    fn engine(&self) -> Result<&Engine, String> {
        self.engine
            .as_ref()
            .ok_or_else(|| "this engine is not ours to end".to_owned())
    }

    fn set_agents(&self, condition: Condition) -> Result<String, String> {
        let links = self.instance.links.as_ref().ok_or("there is no proxy")?;
        links.agents.set(condition);
        Ok("agents and broker".to_owned())
    }

    fn set_control(&self, condition: Condition) -> Result<String, String> {
        let links = self.instance.links.as_ref().ok_or("there is no proxy")?;
        links.control.set(condition);
        Ok("control plane and broker".to_owned())
    }

    fn on_container(&self, pick: u64, command: &[&str]) -> Result<String, String> {
        let (name, id) = self.container(pick)?;
        let mut arguments = command.to_vec();
        arguments.push(&id);
        docker(&arguments)?;
        Ok(name)
    }

    /// One of the running containers of the flow: name and id.
    fn container(&self, pick: u64) -> Result<(String, String), String> {
        let mut running = self.containers("status=running")?;
        if running.is_empty() {
            return Err("no container runs".to_owned());
        }
        Ok(running.swap_remove(index(pick, running.len())))
    }

    fn containers(&self, filter: &str) -> Result<Vec<(String, String)>, String> {
        let instance = format!("label=io.towpath.instance={}", self.instance.name);
        let flow = format!("label=io.towpath.flow={NAME}");
        let mut arguments = vec!["ps", "--no-trunc", "--format", "{{.Names}} {{.ID}}"];
        for filter in [&instance, &flow, filter] {
            arguments.extend(["--filter", filter]);
        }
        let mut found: Vec<(String, String)> = docker(&arguments)?
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect();
        found.sort();
        Ok(found)
    }
}

fn index(pick: u64, count: usize) -> usize {
    usize::try_from(pick % count.max(1) as u64).unwrap_or(0)
}

/// The process of an agent, as this machine numbers it.
fn agent_of(container: &str) -> Result<u32, String> {
    docker(&["inspect", "--format", "{{.State.Pid}}", container])?
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| "the container does not run any more".to_owned())
}

fn step_process_of(agent: u32) -> Result<u32, String> {
    let path = format!("/proc/{agent}/task/{agent}/children");
    let children = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    children
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(|| "the step process is not there".to_owned())
}

fn kill_9(pid: u32) -> Result<(), String> {
    run("kill", &["-9", &pid.to_string()]).map(drop)
}

/// Raises or ends a memory alarm: with a limit that is always exceeded, or with a usual one.
fn alarm(broker: &str, raised: bool) -> Result<(), String> {
    let limit: &[&str] = if raised {
        &["0.000001"]
    } else {
        &["absolute", "1GiB"]
    };
    let mut arguments = vec![
        "exec",
        broker,
        "rabbitmqctl",
        "-q",
        "set_vm_memory_high_watermark",
    ];
    arguments.extend(limit);
    docker(&arguments).map(drop)
}
