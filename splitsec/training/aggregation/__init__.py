"""Rules of aggregation: how the clients' segments become one. One file a rule, with both of its halves."""

from splitsec.training.aggregation.base import RULES, ClientAggregation, Member, Rule, Seeds, ServerAggregation, rule_of

__all__ = ["RULES", "ClientAggregation", "Member", "Rule", "Seeds", "ServerAggregation", "rule_of"]
