//! What a configuration of `bridge` says.

use crate::netlink::device::{Change, Device};
use crate::netlink::op::Op;
use crate::plugins::conf::Conf;
use crate::plugins::{Refusal, Request, masquerade};

const DEFAULT_BRIDGE: &str = "cni0";
const DEFAULT_MTU: u32 = 1500;
/// The highest VLAN; 4095 is reserved (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;
/// What a port belongs to unless told otherwise.
const DEFAULT_VLAN: u16 = 1;

/// The plugin's own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) bridge: String,
    pub(super) gateway: bool,
    pub(super) default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) mtu: u32,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) isolated: bool,
    /// The port's own VLAN.
    pub(super) vlan: Option<u16>,
    /// VLANs that pass with their tags, as ranges.
    pub(super) trunk: Vec<(u16, u16)>,
    /// The port stays in the VLAN it was born into.
    pub(super) keep_default_vlan: bool,
    /// Only frames from the pod's Ethernet address pass.
    pub(super) spoof_check: bool,
    /// IPv6 addresses are checked for duplicates before they are used.
    pub(super) duplicate_check: bool,
    /// The pod's interface is left down.
    pub(super) leave_down: bool,
    /// Addresses are managed.
    pub(super) layer3: bool,
}

/// Reads the configuration; pure.
pub(super) fn read(request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    masquerade::check_backend(request)?;
    let default_gateway = conf.flag("isDefaultGateway")?;
    let layer3 = conf.object("ipam")?.map(|i| i.text("type").map(|t| t.is_some_and(|t| !t.is_empty())));
    let settings = Settings {
        bridge: conf.text("bridge")?.filter(|b| !b.is_empty()).unwrap_or(DEFAULT_BRIDGE).to_owned(),
        gateway: conf.flag("isGateway")? || default_gateway,
        default_gateway,
        force_address: conf.flag("forceAddress")?,
        masquerade: conf.flag("ipMasq")?,
        mtu: conf.number("mtu")?.filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU),
        hairpin: conf.flag("hairpinMode")?,
        promiscuous: conf.flag("promiscMode")?,
        isolated: conf.flag("portIsolation")?,
        vlan: vlan(conf)?,
        trunk: trunk(conf)?,
        keep_default_vlan: conf.flag("preserveDefaultVlan")?,
        spoof_check: conf.flag("macspoofchk")?,
        duplicate_check: conf.flag("enabledad")?,
        leave_down: conf.flag("disableContainerInterface")?,
        layer3: layer3.transpose()?.unwrap_or_default(),
    };
    if settings.hairpin && settings.promiscuous {
        return Err(Refusal::config("cannot set hairpin mode and promiscuous mode at the same time"));
    }
    if settings.layer3 && settings.leave_down {
        return Err(Refusal::config("cannot use IPAM when DisableContainerInterface flag is set"));
    }
    Ok(settings)
}

fn vlan(conf: &Conf) -> Result<Option<u16>, Refusal> {
    let id = conf.number("vlan")?.unwrap_or_default();
    let id = u16::try_from(id).ok().filter(|id| *id <= LAST_VLAN);
    let id = id.ok_or_else(|| Refusal::config("invalid VLAN ID (must be between 0 and 4094)"))?;
    Ok((id > 0).then_some(id))
}

/// Ranges in rising order that do not touch.
fn trunk(conf: &Conf) -> Result<Vec<(u16, u16)>, Refusal> {
    let mut ranges = Vec::new();
    for item in conf.objects("vlanTrunk")? {
        let id = |key: &str| match item.number(key)? {
            None => Ok(None),
            Some(n) => match u16::try_from(n).ok().filter(|n| (1..=LAST_VLAN).contains(n)) {
                Some(n) => Ok(Some(n)),
                None => Err(Refusal::config(format!("incorrect trunk {key} parameter"))),
            },
        };
        match (id("minID")?, id("maxID")?) {
            (Some(first), Some(last)) if first <= last => ranges.push((first, last)),
            (Some(_), Some(_)) => {
                return Err(Refusal::config("minID is greater than maxID in trunk parameter"));
            }
            (None, None) => {}
            (first, _) => {
                let missing = if first.is_none() { "minID" } else { "maxID" };
                let msg =
                    format!("minID and maxID should be configured simultaneously, {missing} is missing");
                return Err(Refusal::config(msg));
            }
        }
        ranges.extend(id("id")?.map(|id| (id, id)));
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    Ok(joined)
}

impl Settings {
    /// Whether the bridge has to tell VLANs apart.
    pub(super) fn tags(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }

    /// The link that has the gateways' addresses: the bridge, or its own end in the VLAN.
    pub(super) fn gateway_link(&self) -> String {
        match self.vlan {
            Some(id) => format!("{}.{id}", self.bridge),
            None => self.bridge.clone(),
        }
    }

    /// Makes a link a port, in its VLANs; pure.
    pub(super) fn port(&self, link: &str, hairpin: bool, trunk: &[(u16, u16)]) -> Vec<Op> {
        let set = |change| Op::Device(Device::Set { link: link.into(), change });
        let mut ops = vec![
            set(Change::Controller(Some(self.bridge.clone()))),
            set(Change::Port { hairpin, isolated: self.isolated }),
        ];
        let mut vlans = |range, untagged, remove| {
            ops.push(Op::Device(Device::Vlans { port: link.into(), range, untagged, remove }));
        };
        if (self.vlan.is_some() || !trunk.is_empty()) && !self.keep_default_vlan {
            vlans((DEFAULT_VLAN, DEFAULT_VLAN), false, true);
        }
        if let Some(id) = self.vlan {
            vlans((id, id), true, false);
        }
        for range in trunk {
            vlans(*range, false, false);
        }
        if self.vlan.is_none() && !trunk.is_empty() {
            // Frames without a tag belong somewhere.
            vlans((DEFAULT_VLAN, DEFAULT_VLAN), true, false);
        }
        ops
    }

    /// What the bridge itself has to be; pure.
    pub(super) fn bridge(&self) -> Vec<Op> {
        let set = |change| Op::Device(Device::Set { link: self.bridge.clone(), change });
        let tags = self.tags().then(|| set(Change::VlanFiltering));
        let promiscuous = self.promiscuous.then(|| Op::Promiscuous(self.bridge.clone()));
        tags.into_iter().chain(promiscuous).chain([Op::Up(self.bridge.clone())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::request;

    fn settings(conf: Value) -> Result<Settings, Refusal> {
        read(&request("ADD", conf))
    }

    fn port(conf: Value) -> Vec<String> {
        let settings = settings(conf).unwrap();
        settings.port("veth1", false, &settings.trunk).iter().skip(2).map(ToString::to_string).collect()
    }

    #[test]
    fn a_port_is_in_the_vlans_that_are_written() {
        assert_eq!(port(json!({})), [""; 0]);
        assert_eq!(
            port(json!({"vlan": 100})),
            ["delete vlan 1-1 of veth1", "add vlan 100-100 of veth1 pvid untagged"]
        );
        assert_eq!(
            port(json!({"vlan": 100, "preserveDefaultVlan": true})),
            ["add vlan 100-100 of veth1 pvid untagged"]
        );
        assert_eq!(
            port(json!({"vlanTrunk": [{"minID": 5, "maxID": 7}, {"id": 8}, {"ID": 20}]})),
            [
                "delete vlan 1-1 of veth1",
                "add vlan 5-8 of veth1",
                "add vlan 20-20 of veth1",
                "add vlan 1-1 of veth1 pvid untagged",
            ]
        );
    }

    #[test]
    fn a_port_is_told_how_to_behave_after_it_is_one() {
        let settings = settings(json!({"hairpinMode": true, "portIsolation": true})).unwrap();
        let ops = settings.port("veth1", settings.hairpin, &settings.trunk);
        let words: Vec<String> = ops.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["set veth1 master cni0", "set veth1 hairpin on isolated on"]);
    }

    #[test]
    fn contradictions_are_refused() {
        for (conf, why) in [
            (json!({"vlan": 4095}), "invalid VLAN ID"),
            (json!({"vlanTrunk": [{"minID": 5}]}), "maxID is missing"),
            (json!({"vlanTrunk": [{"maxID": 5}]}), "minID is missing"),
            (json!({"vlanTrunk": [{"minID": 5, "maxID": 4}]}), "minID is greater"),
            (json!({"vlanTrunk": [{"id": 0}]}), "incorrect trunk id parameter"),
            (json!({"hairpinMode": true, "promiscMode": true}), "at the same time"),
            (json!({"disableContainerInterface": true, "ipam": {"type": "static"}}), "cannot use IPAM"),
        ] {
            assert!(settings(conf.clone()).unwrap_err().msg.contains(why), "{conf}");
        }
        let read = settings(json!({"isDefaultGateway": true, "vlan": 7, "bridge": "br0"})).unwrap();
        assert!(read.gateway && read.tags());
        assert_eq!(read.gateway_link(), "br0.7");
    }
}
