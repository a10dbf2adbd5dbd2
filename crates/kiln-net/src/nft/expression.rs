//! Rules as the kernel's register machine. Pure.

use crate::netlink::Attributes;
use crate::ruleset::{Field, Match, Rule, Statement, Verdict};

/// The first of the 32-bit registers; a key's parts lie side by side in them.
const REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

const META_PROTOCOL: u32 = 1;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_NF_PROTOCOL: u32 = 15;
const META_L4_PROTOCOL: u32 = 16;
const PAYLOAD_LINK: u32 = 0;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_STATE_INVALID: u32 = 1;
const CT_STATUS_DNAT: u32 = 1 << 5;
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const ROUTE_LOCAL: u32 = 2;
const IPV4: u8 = 2;

/// All of a rule.
pub(super) fn expressions(list: &mut Attributes<'_>, rule: &Rule, inet: bool) {
    // In a table for both families, offsets in the IP header mean nothing until the family is known.
    if inet && needs_ipv4(rule) {
        load_meta(list, META_NF_PROTOCOL, REGISTER);
        compare(list, EQUAL, &[IPV4]);
    }
    rule.matches.iter().for_each(|one| condition(list, one));
    rule.statements.iter().for_each(|one| statement(list, one));
}

fn needs_ipv4(rule: &Rule) -> bool {
    let ipv4 = |key: &[Field]| key.iter().any(|field| field.is_ipv4());
    let in_match = rule.matches.iter().any(|one| match one {
        Match::Equal { field, .. } | Match::Between { field, .. } => field.is_ipv4(),
        Match::InSet { key, .. } => ipv4(key),
        Match::LocalDestination => true,
        _ => false,
    });
    let translates = |one: &Statement| {
        use Statement::{Dnat, DnatFrom, Masquerade, Snat};
        matches!(one, Dnat { .. } | DnatFrom { .. } | Snat(_) | Masquerade)
    };
    in_match || rule.statements.iter().any(translates)
}

fn expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |a| {
        a.text(1, name).nest(2, fill);
    });
}

fn load_meta(list: &mut Attributes<'_>, key: u32, register: u32) {
    expression(list, "meta", |a| {
        a.be32(1, register).be32(2, key);
    });
}

fn load_payload(list: &mut Attributes<'_>, base: u32, offset: u32, len: u32, register: u32) {
    expression(list, "payload", |a| {
        a.be32(1, register)
            .be32(2, base)
            .be32(3, offset)
            .be32(4, len);
    });
}

fn load_ct(list: &mut Attributes<'_>, key: u32, register: u32) {
    expression(list, "ct", |a| {
        a.be32(1, register).be32(2, key);
    });
}

fn compare(list: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.be32(1, REGISTER).be32(2, operator).nest(3, |data| {
            data.bytes(1, value);
        });
    });
}

/// Compare the bits of `mask` with zero.
fn bits(list: &mut Attributes<'_>, mask: u32, operator: u32) {
    expression(list, "bitwise", |a| {
        a.be32(1, REGISTER).be32(2, REGISTER).be32(3, 4);
        a.nest(4, |data| {
            data.bytes(1, &mask.to_ne_bytes());
        });
        a.nest(5, |data| {
            data.bytes(1, &[0; 4]);
        });
    });
    compare(list, operator, &[0; 4]);
}

fn load(list: &mut Attributes<'_>, field: Field, register: u32) {
    match field {
        Field::InputInterface => load_meta(list, META_INPUT_NAME, register),
        Field::OutputInterface => load_meta(list, META_OUTPUT_NAME, register),
        Field::FlowMark => load_ct(list, CT_MARK, register),
        Field::EtherType => load_meta(list, META_PROTOCOL, register),
        Field::Protocol => load_meta(list, META_L4_PROTOCOL, register),
        Field::EtherSource => load_payload(list, PAYLOAD_LINK, 6, 6, register),
        Field::ArpSenderMac => load_payload(list, PAYLOAD_NETWORK, 8, 6, register),
        Field::ArpSenderAddress => load_payload(list, PAYLOAD_NETWORK, 14, 4, register),
        Field::SourceAddress => load_payload(list, PAYLOAD_NETWORK, 12, 4, register),
        Field::DestinationAddress => load_payload(list, PAYLOAD_NETWORK, 16, 4, register),
        Field::DestinationPort => load_payload(list, PAYLOAD_TRANSPORT, 2, 2, register),
        Field::IcmpType => load_payload(list, PAYLOAD_TRANSPORT, 0, 1, register),
    }
}

fn load_key(list: &mut Attributes<'_>, key: &[Field]) {
    let mut register = REGISTER;
    for field in key {
        load(list, *field, register);
        register += u32::try_from(field.padded_len() / 4).unwrap_or(1);
    }
}

fn condition(list: &mut Attributes<'_>, one: &Match) {
    match one {
        Match::InterfacePrefix {
            field,
            prefix,
            negate,
        } => {
            load(list, *field, REGISTER);
            compare(
                list,
                if *negate { DIFFERENT } else { EQUAL },
                prefix.as_bytes(),
            );
        }
        Match::Equal {
            field,
            value,
            negate,
        } => {
            load(list, *field, REGISTER);
            compare(list, if *negate { DIFFERENT } else { EQUAL }, value);
        }
        Match::Between { field, first, last } => {
            load(list, *field, REGISTER);
            compare(list, AT_LEAST, first);
            compare(list, AT_MOST, last);
        }
        Match::InSet { key, set, negate } => {
            load_key(list, key);
            expression(list, "lookup", |a| {
                a.text(1, set).be32(2, REGISTER);
                if *negate {
                    a.be32(5, 1);
                }
            });
        }
        Match::Reply => {
            load_ct(list, CT_DIRECTION, REGISTER);
            compare(list, EQUAL, &[1]);
        }
        Match::Invalid => {
            load_ct(list, CT_STATE, REGISTER);
            bits(list, CT_STATE_INVALID, DIFFERENT);
        }
        Match::Redirected => {
            load_ct(list, CT_STATUS, REGISTER);
            bits(list, CT_STATUS_DNAT, DIFFERENT);
        }
        Match::NotRedirected => {
            load_ct(list, CT_STATUS, REGISTER);
            bits(list, CT_STATUS_DNAT, EQUAL);
        }
        Match::LocalDestination => {
            expression(list, "fib", |a| {
                a.be32(1, REGISTER)
                    .be32(2, FIB_ADDRESS_TYPE)
                    .be32(3, FIB_DESTINATION);
            });
            compare(list, EQUAL, &ROUTE_LOCAL.to_ne_bytes());
        }
    }
}

fn statement(list: &mut Attributes<'_>, one: &Statement) {
    match one {
        Statement::Count(name) => expression(list, "objref", |a| {
            a.be32(1, 1).text(2, name);
        }),
        Statement::MarkFlowFrom { key, map } => {
            load(list, *key, REGISTER);
            look_up(list, map, REGISTER);
            store_flow_mark(list);
        }
        Statement::Verdict(one) => expression(list, "immediate", |a| {
            a.be32(1, VERDICT_REGISTER)
                .nest(2, |data| verdict(data, one));
        }),
        Statement::VerdictFrom { key, map } => {
            load(list, *key, REGISTER);
            look_up(list, map, VERDICT_REGISTER);
        }
        Statement::Dnat { address, port } => {
            immediate(list, REGISTER, &address.octets());
            if let Some(port) = port {
                immediate(list, REGISTER + 1, &port.to_be_bytes());
            }
            translate(list, NAT_DESTINATION, port.is_some());
        }
        Statement::DnatFrom { key, map } => {
            load_key(list, key);
            look_up(list, map, REGISTER);
            translate(list, NAT_DESTINATION, true);
        }
        Statement::Snat(address) => {
            immediate(list, REGISTER, &address.octets());
            translate(list, NAT_SOURCE, false);
        }
        Statement::Masquerade => expression(list, "masq", |_| {}),
    }
}

const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;

fn translate(list: &mut Attributes<'_>, kind: u32, with_port: bool) {
    expression(list, "nat", |a| {
        a.be32(1, kind).be32(2, IPV4.into()).be32(3, REGISTER);
        if with_port {
            a.be32(5, REGISTER + 1);
        }
    });
}

fn immediate(list: &mut Attributes<'_>, register: u32, value: &[u8]) {
    expression(list, "immediate", |a| {
        a.be32(1, register).nest(2, |data| {
            data.bytes(1, value);
        });
    });
}

fn look_up(list: &mut Attributes<'_>, map: &str, register: u32) {
    expression(list, "lookup", |a| {
        a.text(1, map).be32(2, REGISTER).be32(3, register);
    });
}

fn store_flow_mark(list: &mut Attributes<'_>) {
    expression(list, "ct", |a| {
        a.be32(2, CT_MARK).be32(4, REGISTER);
    });
}

const CODE_DROP: u32 = 0;
const CODE_ACCEPT: u32 = 1;
const CODE_JUMP: u32 = (-3_i32).cast_unsigned();
const CODE_GOTO: u32 = (-4_i32).cast_unsigned();

/// A verdict, as data of a rule or of an element.
pub(super) fn verdict(data: &mut Attributes<'_>, one: &Verdict) {
    data.nest(2, |a| {
        match one {
            Verdict::Accept => a.be32(1, CODE_ACCEPT),
            Verdict::Drop => a.be32(1, CODE_DROP),
            Verdict::Jump(chain) => a.be32(1, CODE_JUMP).text(2, chain),
            Verdict::Goto(chain) => a.be32(1, CODE_GOTO).text(2, chain),
        };
    });
}
