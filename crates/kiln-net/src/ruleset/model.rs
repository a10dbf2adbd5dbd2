//! The vocabulary. Pure.

use std::net::Ipv4Addr;

use crate::subnet::InterfaceName;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    /// Frames on a bridge.
    Bridge,
}

/// A packet field that keys and comparisons are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    InputInterface,
    OutputInterface,
    EtherType,
    EtherSource,
    ArpSenderMac,
    ArpSenderAddress,
    SourceAddress,
    DestinationAddress,
    Protocol,
    DestinationPort,
    IcmpType,
    FlowMark,
}

impl Field {
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::InputInterface | Self::OutputInterface => 16,
            Self::EtherSource | Self::ArpSenderMac => 6,
            Self::SourceAddress
            | Self::DestinationAddress
            | Self::ArpSenderAddress
            | Self::FlowMark => 4,
            Self::EtherType | Self::DestinationPort => 2,
            Self::Protocol | Self::IcmpType => 1,
        }
    }

    /// Length in a concatenated key, where each part starts on four bytes.
    pub(crate) const fn padded_len(self) -> usize {
        self.len().next_multiple_of(4)
    }

    /// nft's number for the type; only used to print the set.
    pub(crate) const fn type_id(self) -> u32 {
        match self {
            Self::InputInterface | Self::OutputInterface => 41,
            Self::EtherType => 10,
            Self::EtherSource | Self::ArpSenderMac => 9,
            Self::SourceAddress | Self::DestinationAddress | Self::ArpSenderAddress => 7,
            Self::Protocol => 12,
            Self::DestinationPort => 13,
            Self::IcmpType => 14,
            Self::FlowMark => 19,
        }
    }

    pub(crate) const fn is_ipv4(self) -> bool {
        matches!(self, Self::SourceAddress | Self::DestinationAddress)
    }
}

/// A condition of a rule; all of them must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// The interface's name starts with this.
    InterfacePrefix {
        field: Field,
        prefix: String,
        negate: bool,
    },
    /// The field has this value.
    Equal {
        field: Field,
        value: Vec<u8>,
        negate: bool,
    },
    /// The field lies between, both ends included.
    Between {
        field: Field,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// The key is in a set.
    InSet {
        key: Vec<Field>,
        set: String,
        negate: bool,
    },
    /// The packet answers a flow that was allowed when it began.
    Reply,
    /// Conntrack makes no sense of it.
    Invalid,
    /// The flow was redirected by one of our maps.
    Redirected,
    /// It was not.
    NotRedirected,
    /// The destination is an address of this host.
    LocalDestination,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    /// Judge by another chain; what falls off its end comes back to the next rule.
    Jump(String),
    /// As `Jump`, without coming back.
    Goto(String),
}

/// What a rule does when its conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    Count(&'static str),
    MarkFlowFrom {
        key: Field,
        map: &'static str,
    },
    Verdict(Verdict),
    VerdictFrom {
        key: Field,
        map: &'static str,
    },
    Dnat {
        address: Ipv4Addr,
        port: Option<u16>,
    },
    DnatFrom {
        key: Vec<Field>,
        map: &'static str,
    },
    Snat(Ipv4Addr),
    Masquerade,
}

/// Conditions, then statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) statements: Vec<Statement>,
}

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    pub(crate) fn then(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    pub(crate) fn equal(self, field: Field, value: &[u8]) -> Self {
        self.when(Match::Equal {
            field,
            value: value.to_vec(),
            negate: false,
        })
    }

    pub(crate) fn differs(self, field: Field, value: &[u8]) -> Self {
        self.when(Match::Equal {
            field,
            value: value.to_vec(),
            negate: true,
        })
    }

    pub(crate) fn entering_by(self, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        self.when(Match::InterfacePrefix {
            field: Field::InputInterface,
            prefix,
            negate: false,
        })
    }

    pub(crate) fn leaving_by(self, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        self.when(Match::InterfacePrefix {
            field: Field::OutputInterface,
            prefix,
            negate: false,
        })
    }

    pub(crate) fn in_set(self, key: &[Field], set: &str) -> Self {
        self.when(Match::InSet {
            key: key.to_vec(),
            set: set.to_owned(),
            negate: false,
        })
    }

    pub(crate) fn not_in_set(self, key: &[Field], set: &str) -> Self {
        self.when(Match::InSet {
            key: key.to_vec(),
            set: set.to_owned(),
            negate: true,
        })
    }

    pub(crate) fn accept(self) -> Self {
        self.then(Statement::Verdict(Verdict::Accept))
    }

    pub(crate) fn drop(self) -> Self {
        self.then(Statement::Verdict(Verdict::Drop))
    }

    pub(crate) fn goto(self, chain: &str) -> Self {
        self.then(Statement::Verdict(Verdict::Goto(chain.to_owned())))
    }
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookKind {
    Filter,
    Nat,
}

/// A base chain's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) kind: HookKind,
    /// `prerouting` 0, `input` 1, `forward` 2, `output` 3, `postrouting` 4.
    pub(crate) number: u32,
    pub(crate) priority: i32,
    /// Whether what falls off the end is dropped. Never in a table of the host (a drop there would
    /// be everyone's), only inside a sandbox's own namespace.
    pub(crate) drop: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetKind {
    /// Single keys.
    Plain,
    /// Ranges of addresses.
    Interval,
    /// Keys that expire.
    Timeout,
    /// Keys that match a packet once its bytes exceed their rate.
    Rate,
    /// Key to `address . port`.
    AddressPortMap,
    /// Key to a mark.
    MarkMap,
    /// Key to a verdict.
    VerdictMap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) key: Vec<Field>,
    pub(crate) kind: SetKind,
    /// The most elements; 0 for no limit.
    pub(crate) size: u32,
}

impl Set {
    pub(crate) fn new(name: impl Into<String>, key: &[Field], kind: SetKind) -> Self {
        Self {
            name: name.into(),
            key: key.to_vec(),
            kind,
            size: 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Bytes(Vec<u8>),
    Verdict(Verdict),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// The key is the first address after an interval.
    pub(crate) interval_end: bool,
    pub(crate) data: Option<Data>,
    pub(crate) timeout_ms: Option<u64>,
    /// In a set of rates, bytes per second.
    pub(crate) rate: Option<u64>,
}

impl Element {
    pub(crate) fn key(key: Vec<u8>) -> Self {
        Self {
            key,
            interval_end: false,
            data: None,
            timeout_ms: None,
            rate: None,
        }
    }

    pub(crate) fn map(key: Vec<u8>, data: Data) -> Self {
        Self {
            data: Some(data),
            ..Self::key(key)
        }
    }

    /// The elements of an interval set for inclusive ranges.
    pub(crate) fn ranges(ranges: &[(u32, u32)]) -> Vec<Self> {
        let mut elements = Vec::with_capacity(ranges.len() * 2);
        for &(first, last) in ranges {
            elements.push(Self::key(first.to_be_bytes().to_vec()));
            if let Some(after) = last.checked_add(1) {
                let end = Self::key(after.to_be_bytes().to_vec());
                elements.push(Self {
                    interval_end: true,
                    ..end
                });
            }
        }
        elements
    }
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Create the table if it is missing; the comment says whose it is.
    AddTable {
        comment: String,
    },
    DeleteTable,
    AddCounter(&'static str),
    AddSet(Set),
    /// Create the set if it is missing.
    EnsureSet(Set),
    DeleteSet(String),
    AddChain(Chain),
    /// Create the chain if it is missing, and empty it if not. One that is only jumped to.
    EnsureEmptyChain(String),
    /// Empty a chain and delete it.
    DeleteChain(String),
    AddRule {
        chain: String,
        rule: Rule,
    },
    /// Add elements; one that exists is a failure.
    AddElements {
        set: String,
        elements: Vec<Element>,
    },
    /// Add elements; one that exists stays.
    EnsureElements {
        set: String,
        elements: Vec<Element>,
    },
    DeleteElements {
        set: String,
        elements: Vec<Element>,
    },
}

/// Changes to one table that happen all or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) family: TableFamily,
    pub(crate) table: String,
    pub(crate) changes: Vec<Change>,
}

/// An interface's name as a key.
pub(crate) fn interface_key(name: &InterfaceName) -> Vec<u8> {
    let mut key = name.as_str().as_bytes().to_vec();
    key.resize(Field::InputInterface.len(), 0);
    key
}

/// A port as part of a concatenated key.
pub(crate) fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// A protocol number as part of a concatenated key.
pub(crate) fn padded_protocol(number: u8) -> [u8; 4] {
    [number, 0, 0, 0]
}
