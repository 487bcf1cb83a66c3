"""What an AWS cluster file names is made beforehand: Ray, left to itself, opens SSH to the world.

boto3 finds credentials and endpoint as the AWS command line does. Whoever runs this needs the right to write IAM
roles, security groups and a bucket; the cluster itself then works with the role that is made here.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.engine.cluster_file.finding import ClusterFileError, mapping

_WIDEST = 8  # a /8 is the largest private network; wider is not a named range
_SSH = 22


@dataclass(frozen=True)
class Wanted:
    """What a cluster file names, and who may use it.

    `ssh_from` is a network in CIDR notation; `vpc` None is the account's default VPC.
    """

    region: str
    group: str
    profile: str
    bucket: str
    ssh_from: str
    vpc: str | None = None

    @classmethod
    def of_file(
        cls, config: Mapping[str, Any], *, ssh_from: str, bucket: str, vpc: str | None, where: str = "file"
    ) -> Wanted:
        """What the file names.

        Raises:
            ClusterFileError: It is not for AWS, names no group or not one profile; or the network is no network, or
                open to most of the world.
        """
        provider = mapping(config.get("provider"))
        if provider.get("type") != "aws":
            raise ClusterFileError(f"provider.type is {provider.get('type')}, not aws", where=where)
        group = mapping(provider.get("security_group")).get("GroupName")
        types = mapping(config.get("available_node_types")).values()
        profiles = {mapping(_node_config(each).get("IamInstanceProfile")).get("Name") for each in types}
        if not provider.get("region") or not group or len(profiles) != 1 or None in profiles:
            problem = "it does not name a region, a security group and one instance profile for all node types"
            raise ClusterFileError(problem, where=where, remedy="hpo cluster check FILE says what is missing")
        return cls(str(provider["region"]), str(group), str(profiles.pop()), bucket, _named_range(ssh_from), vpc)


def _node_config(node_type: Any) -> Mapping[str, Any]:
    return mapping(mapping(node_type).get("node_config"))


def _named_range(cidr: str) -> str:
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        remedy = "give your network, such as 203.0.113.0/24, or one address as 203.0.113.7/32"
        raise ClusterFileError(f"{cidr} is no network ({error})", where="--ssh-from", remedy=remedy) from error
    if network.prefixlen < _WIDEST:
        problem = f"{cidr} is {network.num_addresses:,} addresses"
        raise ClusterFileError(problem, where="--ssh-from", remedy=f"name a network of at most /{_WIDEST}")
    return str(network)


def prepare(wanted: Wanted) -> Iterator[str]:
    """Makes what is missing, and says each thing that is there now. Once more changes nothing.

    Raises:
        ClusterFileError: boto3 is not installed, the VPC is missing, a group of that name lets others in, or AWS
            refuses.
    """
    if importlib.util.find_spec("boto3") is None:
        raise ClusterFileError("boto3 is not installed", where="prepare", remedy="pip install 'hpo[aws]'")
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield from _prepared(wanted)
    except (BotoCoreError, ClientError) as error:
        remedy = "what was said above is there; correct this and start the command again"
        raise ClusterFileError(f"AWS refuses it: {error}", where="prepare", remedy=remedy) from error


def _prepared(wanted: Wanted) -> Iterator[str]:
    import boto3

    ec2, iam, s3 = (boto3.client(name, region_name=wanted.region) for name in ("ec2", "iam", "s3"))
    yield f"security group {wanted.group}: {_security_group(ec2, wanted)}"
    yield f"instance profile {wanted.profile}: {_instance_profile(iam, wanted)}"
    yield f"bucket {wanted.bucket}: {_bucket(s3, wanted)}"


def policy(wanted: Wanted) -> dict[str, Any]:
    """What head and workers may do: read and write the bucket, and start and end machines with this same role."""
    bucket = f"arn:aws:s3:::{wanted.bucket}"
    statements: list[dict[str, Any]] = [
        {"Sid": "Bucket", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": bucket},
        {
            "Sid": "Objects",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": f"{bucket}/*",
        },
        {
            "Sid": "Autoscale",
            "Action": [
                *(f"ec2:{verb}Instances" for verb in ("Run", "Start", "Stop", "Terminate")),
                "ec2:CreateTags",
                "ec2:DeleteTags",
                "ec2:Describe*",
            ],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": wanted.region}},
        },
        {"Sid": "SameRole", "Action": "iam:PassRole", "Resource": f"arn:aws:iam::*:role/{wanted.profile}"},
        {
            "Sid": "SpotRole",
            "Action": "iam:CreateServiceLinkedRole",
            "Resource": "*",
            "Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        },
        {"Sid": "Image", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"},
    ]
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **each} for each in statements]}


def _instance_profile(iam: Any, wanted: Wanted) -> str:
    name = wanted.profile
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    made = _unless_there(iam.create_role, "EntityAlreadyExists", RoleName=name, AssumeRolePolicyDocument=document)
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(policy(wanted)))
    _unless_there(iam.create_instance_profile, "EntityAlreadyExists", InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return f"role {'made' if made else 'was there'}, its policy allows {wanted.bucket} and machines in {wanted.region}"


def _security_group(ec2: Any, wanted: Wanted) -> str:
    vpc = wanted.vpc or _default_vpc(ec2, wanted)
    filters = [{"Name": "group-name", "Values": [wanted.group]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if found:
        group = found[0]["GroupId"]
        _refuse_others(found[0]["IpPermissions"], wanted, group=group)
    else:
        text = "SSH from a named network; everything among its own machines"
        group = ec2.create_security_group(GroupName=wanted.group, Description=text, VpcId=vpc)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": _SSH, "ToPort": _SSH, **_sources(wanted.ssh_from)}
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    for rule in (ssh, among):
        _unless_there(
            ec2.authorize_security_group_ingress, "InvalidPermission.Duplicate", GroupId=group, IpPermissions=[rule]
        )
    return f"{group} in {vpc}, SSH from {wanted.ssh_from} only"


def _sources(cidr: str) -> dict[str, Any]:
    version = ipaddress.ip_network(cidr).version
    return {"IpRanges": [{"CidrIp": cidr}]} if version == 4 else {"Ipv6Ranges": [{"CidrIpv6": cidr}]}


def _refuse_others(permissions: list[dict[str, Any]], wanted: Wanted, *, group: str) -> None:
    """Whatever lets in others than the named network, by SSH, and the group's own machines is an error."""
    for rule in permissions:
        is_ssh = (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")) == ("tcp", _SSH, _SSH)
        allowed = {group, wanted.ssh_from} if is_ssh else {group}
        if others := [each for each in _let_in(rule) if each not in allowed]:
            remedy = "remove that rule, or name another group in the file"
            problem = f"it opens {_ports(rule)} to {', '.join(others)}"
            raise ClusterFileError(problem, where=wanted.group, remedy=remedy)


def _let_in(rule: Mapping[str, Any]) -> list[str]:
    """Networks, lists of networks and groups."""
    kinds = {
        "IpRanges": "CidrIp",
        "Ipv6Ranges": "CidrIpv6",
        "PrefixListIds": "PrefixListId",
        "UserIdGroupPairs": "GroupId",
    }
    return [str(each[name]) for kind, name in kinds.items() for each in rule.get(kind, [])]


def _ports(rule: Mapping[str, Any]) -> str:
    first, last = rule.get("FromPort", -1), rule.get("ToPort", -1)
    if first < 0:
        return "every port"
    return f"port {first}" if first == last else f"ports {first} to {last}"


def _default_vpc(ec2: Any, wanted: Wanted) -> str:
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not found:
        raise ClusterFileError(f"{wanted.region} has no default VPC", where="--vpc", remedy="name the VPC to use")
    return str(found[0]["VpcId"])


def _bucket(s3: Any, wanted: Wanted) -> str:
    place: dict[str, Any] = {}
    if wanted.region != "us-east-1":  # which S3 refuses as a constraint
        place = {"CreateBucketConfiguration": {"LocationConstraint": wanted.region}}
    _unless_there(s3.create_bucket, "BucketAlreadyOwnedByYou", Bucket=wanted.bucket, **place)
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=wanted.bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True))
    return "private"


def _unless_there(call: Any, code: str, **arguments: Any) -> bool:
    """Whether the call made something; False where it answers that it is there already."""
    from botocore.exceptions import ClientError

    try:
        call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        return False
    return True
