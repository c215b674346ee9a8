"""boto3 against `ENDPOINT`: puts, gets, ranges, parts and deletes; the file FILE has to come back as it went. Prints `right`."""

import hashlib
import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.client import Config
from botocore.exceptions import ClientError

endpoint, path, key, secret = sys.argv[1:5]
with open(path, "rb") as f:
    whole = f.read()
config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="eu-central-1", config=config)
s3.put_object(Bucket="b", Key="small file.txt", Body=whole[:1000], ContentType="text/plain", Metadata={"from": "a test"})
assert s3.get_object(Bucket="b", Key="small file.txt")["Body"].read() == whole[:1000]
s3.put_object(Bucket="b", Key="empty", Body=b"")
assert s3.head_object(Bucket="b", Key="empty")["ContentLength"] == 0
parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)
s3.upload_file(path, "b", "large", Config=parts)
s3.download_file("b", "large", path + ".back", Config=parts)
with open(path + ".back", "rb") as f:
    assert hashlib.sha256(f.read()).digest() == hashlib.sha256(whole).digest()
part = s3.get_object(Bucket="b", Key="large", Range="bytes=1000000-2999999")
assert part["ResponseMetadata"]["HTTPStatusCode"] == 206 and part["Body"].read() == whole[1000000:3000000]
s3.delete_object(Bucket="b", Key="large")
try:
    s3.get_object(Bucket="b", Key="large")
    raise SystemExit("it is still there")
except ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
wrong = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key="wrong", region_name="eu-central-1", config=config)
try:
    wrong.get_object(Bucket="b", Key="empty")
    raise SystemExit("a wrong signature was taken")
except ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403, error
print("right")
